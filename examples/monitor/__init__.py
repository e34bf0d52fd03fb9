"""A monitor that runs on a schedule and asks a person about what it finds."""
