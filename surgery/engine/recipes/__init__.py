"""Which passes run, in which order, on which graph: visible tuples of steps."""
