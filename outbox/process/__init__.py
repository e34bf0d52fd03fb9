"""The process that a service runs in: its signals, its threads, the children that are forked from it, its end."""
