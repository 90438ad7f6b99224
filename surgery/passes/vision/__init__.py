"""Passes for patches, grids, and features on their way from the vision tower to the decoder."""
