"""What `export_min` and `surgery` share: errors, files, console, pictures, prompts, the demo.

The modules here import nothing of the two packages but each other.
"""
