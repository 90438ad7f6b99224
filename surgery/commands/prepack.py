"""Store the weights of a package a second time, packed for this machine's processor.

A process that loads the result maps its weights from the file instead of copying them, and needs
a small part of the memory; the package becomes up to twice as large. Make it on the machine, or on
the kind of machine, that runs it: elsewhere it works, but copies its weights as before.
"""

from __future__ import annotations

import argparse


def configure(p: argparse.ArgumentParser) -> None:
    """Define the package, and where the result goes."""
    p.add_argument("package", metavar="DIR", help="package directory")
    p.add_argument("-o", "--output", metavar="OUT", help="directory to write (DIR-prepacked)")
    p.add_argument("--force", action="store_true", help="replace an earlier output")


def main(args: argparse.Namespace) -> int:
    """Write the package."""
    from surgery.jobs.prepack import prepack

    prepack(args.package, args.output, args.force)
    return 0
