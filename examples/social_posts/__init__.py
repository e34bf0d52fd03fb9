"""Runs a social media agent: posts come in, are enriched, judged, reviewed by a person, and acted upon."""
