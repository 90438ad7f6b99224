"""Passes that replace float weights by quantized ones."""
