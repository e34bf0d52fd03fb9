"""An order that waits for its payment: a signal of another system, with a time-out."""
