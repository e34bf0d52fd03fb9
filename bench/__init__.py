"""Measures the engine; see README.md."""
