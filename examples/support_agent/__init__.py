"""A support agent of Pydantic AI: it looks things up by itself, and refunds money when a person has approved."""
