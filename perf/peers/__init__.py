"""Other servers for perf.compare: each in an environment of its own, all with the same model."""
