"""Recipes, what they need to know, and the runner that applies them pass by pass."""
