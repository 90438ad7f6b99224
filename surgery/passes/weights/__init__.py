"""Passes that change how weights are stored: dtype, order, precision."""
