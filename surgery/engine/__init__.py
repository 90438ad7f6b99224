"""Recipes, the settings and facts that they read, and the runner that applies them."""
