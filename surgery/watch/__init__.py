"""Watching a run: dumps, step checks, near-misses and where every weight comes from."""
