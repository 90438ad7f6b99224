"""Passes for RMS and layer normalization, alone and fused with a residual sum."""
