"""A social media agent: posts come in, are enriched, decided, reviewed by a person, and acted upon."""
