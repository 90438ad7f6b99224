"""Showing a run: the HTML report, drawings and tables."""
