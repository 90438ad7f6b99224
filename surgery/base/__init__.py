"""What `export_min` and `surgery` share: errors, the terminal, outputs, shards, pictures.

Imports neither of the two packages beyond this room.
"""
