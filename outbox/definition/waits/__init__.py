"""What a handler may wait for besides a worker: one module for each kind, behind the protocol in wait.py."""
