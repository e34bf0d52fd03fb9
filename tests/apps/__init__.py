"""Applications that the tests run as processes of their own: `--app apps.NAME:…`."""
