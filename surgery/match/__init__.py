"""The vocabulary of matching: rotary embeddings, heads, masks, norms, and regions that are run."""
