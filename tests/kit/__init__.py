"""Holds what tests share: servers, brokers and proxies that they start, acts that they play, and their queries."""
