"""What anyone does in a transaction of their own: submit, decide, signal, accept; sync and async."""
