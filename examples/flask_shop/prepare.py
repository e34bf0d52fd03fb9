"""Prepares the database: the schema of Outbox, the shop's table, and the pipeline. Run it with each release."""

import psycopg

import outbox

from .app import DSN
from .pipeline import orders

TABLE = """
    CREATE TABLE IF NOT EXISTS shop_orders (
        id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        customer text NOT NULL,
        cents integer NOT NULL,
        parcel text
    )
"""


def main() -> None:
    outbox.migrate(DSN)
    with psycopg.connect(DSN) as conn:
        conn.execute(TABLE)
        outbox.deploy(conn, orders)


if __name__ == "__main__":
    main()
