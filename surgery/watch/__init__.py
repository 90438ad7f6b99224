"""Watch a run: dumps, checks of each pass, near-misses, and where every weight comes from."""
