"""What an application declares (pipelines, stages, waits, limits, schedules), and the deploy that writes it."""
