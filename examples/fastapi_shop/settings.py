"""Reads the one setting: DATABASE_URL, as SQLAlchemy takes it, with asyncpg or psycopg as its driver."""

import os

URL = os.environ["DATABASE_URL"]
"""The same for the engine of SQLAlchemy and for the worker, which brings its own driver."""
