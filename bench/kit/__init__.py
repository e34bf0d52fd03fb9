"""What the benches share: a database, load, workers that keep notes, reports and pictures."""
