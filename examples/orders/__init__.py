"""An order that waits for its payment: a signal from another system, with a timeout."""
