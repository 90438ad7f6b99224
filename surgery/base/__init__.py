"""What `export_min` and `surgery` share: errors, files, the terminal, pictures, prompts, the demo.

Imports neither of the two packages beyond this room.
"""
