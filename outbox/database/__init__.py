"""Connections, DSNs, statements, migrations and the bundled server."""
