"""Holds connections, DSNs, statements, migrations and the bundled server."""
