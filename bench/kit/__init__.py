"""What the benches share: a database, load, workers that take notes, reports and pictures."""
