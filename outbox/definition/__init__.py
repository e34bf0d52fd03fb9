"""What an application declares: pipelines, stages, waits, limits, schedules; and writing it into the database."""
