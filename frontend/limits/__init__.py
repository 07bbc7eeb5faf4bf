"""Limits of a key: requests a minute and an hour and tokens a minute, exact over all front ends."""
