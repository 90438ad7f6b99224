"""How a graph with a form for long inputs and one for short ones is known: see `long_input`."""

LENGTH = 16
"""Positions from which an input is long. On two cores (Zen 4), a product of 8-bit integers, which
reads twice the bytes of a 4-bit one, took as long as that at about 12 positions, and 0.56 of the
time at 64."""
LIMIT = "long_input_length"
"""The initializer with the number of positions from which an input is long."""
LONG = ".long"
"""End of the name of a weight that the branch for long inputs alone reads."""
