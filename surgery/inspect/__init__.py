"""Seeing what each pass does: tables, dumps, verification, near-misses, the report."""
