"""Runs stages: claims jobs, calls handlers, commits what they return."""
