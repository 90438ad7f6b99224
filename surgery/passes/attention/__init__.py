"""Passes for attention and its inputs."""
