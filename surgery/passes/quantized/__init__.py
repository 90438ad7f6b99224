"""Passes that put quantized weights in place of float ones."""
