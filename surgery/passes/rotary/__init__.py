"""Passes for rotary position embeddings."""
