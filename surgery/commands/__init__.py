"""The commands, one per module, each with `configure(parser)` and `main(args)`.

The module `options` holds the arguments that several commands share.
"""
