"""Passes for activations, gated MLPs and mixtures of experts."""
