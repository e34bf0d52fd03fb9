"""Runs statements on the connections that applications hold, of any driver, without importing one that isn't used."""
