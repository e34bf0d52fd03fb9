"""Manages the process that a service runs in: its signals, its threads, its forked children and its end."""
