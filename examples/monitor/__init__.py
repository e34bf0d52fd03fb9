"""A monitor that looks by the clock, and asks a person about what it finds."""
