"""A research agent of Pydantic AI: tools in parallel, in one stage."""
