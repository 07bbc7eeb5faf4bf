"""Measurements: a whole server to measure, load generators, scenarios and their committed results."""
