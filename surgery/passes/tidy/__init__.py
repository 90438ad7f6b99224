"""Passes that bring the graphs of all exporters into one form, which other passes match."""
