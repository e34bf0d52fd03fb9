"""A research agent: it asks many sources at once and writes a draft, which a person approves or edits first."""
