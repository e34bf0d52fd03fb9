"""A graph of LangGraph: it looks things up in parallel, asks a person about a refund, and answers the customer."""
