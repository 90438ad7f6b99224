"""Passes that bring every exporter's graph into one form, which the others start from."""
