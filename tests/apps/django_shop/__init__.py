"""The Django app that tests run in their own process: see kit/django_project.py."""
