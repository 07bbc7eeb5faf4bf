"""Whole files at once: read → tokenize → run → write, each stage a module, in windows of rows (docs/bulk.md)."""
