"""The kinds of waits that a handler may return: one module for each, all with the protocol in wait.py."""
