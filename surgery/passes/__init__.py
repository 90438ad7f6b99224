"""The passes, one a module; the module of a pass has its name."""
