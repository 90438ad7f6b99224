"""Recipes: which passes run in which order on which graph, as tuples of steps."""
