"""The commands, one a module: `configure(parser)` and `main(args)`."""
