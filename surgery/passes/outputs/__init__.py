"""Passes that change what a decoder returns."""
