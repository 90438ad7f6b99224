"""Command-line arguments that the commands of `export_min` and of `surgery` share."""

from __future__ import annotations

import argparse


def add_hub(p: argparse.ArgumentParser) -> None:
    """Add the options for a checkpoint on the Hugging Face hub."""
    p.add_argument(
        "-c",
        "--cache-dir",
        "--cache_dir",
        metavar="DIR",
        help="download cache of the Hugging Face hub (default: the cache of huggingface_hub)",
    )
    p.add_argument("--revision", help="branch, tag or commit of the checkpoint on the hub")
