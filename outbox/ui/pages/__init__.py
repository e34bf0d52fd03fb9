"""The pages: each module has one, with what may be done on it."""
