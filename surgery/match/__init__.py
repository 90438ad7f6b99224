"""Patterns that several passes match: rotary embeddings, heads, masks, scores, norms, logits."""
