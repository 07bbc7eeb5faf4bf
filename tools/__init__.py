"""Commands for people: prepare a model bundle, serve."""
