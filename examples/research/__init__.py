"""A research agent: it asks many sources at once, writes a draft, and a person approves it or edits it first."""
