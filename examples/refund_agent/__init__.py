"""Two agents of the OpenAI Agents SDK: one finds the order and hands off, the other one refunds when it is approved."""
