"""Doors to agent frameworks: what an agent does inside a handler is kept, and is not repeated by the next attempt."""
