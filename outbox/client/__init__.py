"""The calls that an application makes in its own transaction, sync or async: submit, decide, signal, accept."""
