"""The model side, exactly one process: schedule, run, publish."""
