"""Reads the one setting: DATABASE_URL, as SQLAlchemy takes it, with asyncpg or psycopg as its driver."""

import os

from sqlalchemy.engine import make_url

URL = make_url(os.environ["DATABASE_URL"])
DSN = URL.set(drivername="postgresql").render_as_string(hide_password=False)
"""The same database for the worker, which brings its own driver."""
