"""The two jobs: a raw export to a package, and a generic recipe on graphs that others exported."""
