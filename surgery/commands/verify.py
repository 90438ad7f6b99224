"""Check a package: its files, configurations and graphs, the runtime, and logits against PyTorch.

The exit code is 0 if every check passes and 1 if one fails.
"""

from __future__ import annotations

import argparse

from surgery.base.arguments import add_hub
from surgery.base.errors import visible


def configure(p: argparse.ArgumentParser) -> None:
    """Define the package, and the checkpoint to compare it with."""
    p.add_argument("package", metavar="DIR", help="package directory")
    add_checkpoint(p, "--checkpoint", "compare the logits with PyTorch running this checkpoint")
    p.add_argument(
        "--no-digests",
        dest="digests",
        action="store_false",
        help="do not compare every byte with the manifest, which takes about a second for each GB",
    )


def add_checkpoint(p: argparse.ArgumentParser, name: str, purpose: str) -> None:
    """Add the option that names a checkpoint, and the options for one on the hub.

    Args:
        p: the parser.
        name: the option.
        purpose: what the checkpoint is for, as the beginning of the help text.
    """
    p.add_argument(
        name,
        metavar="CHECKPOINT",
        help=f"{purpose}: a local directory, a hub id, or demo for the demo checkpoint "
        "that the project contains",
    )
    add_hub(p)


def main(args: argparse.Namespace) -> int:
    """Print the findings, one line for each check."""
    from rich.console import Console
    from rich.markup import escape

    from surgery.verify import verify_package

    report = verify_package(
        args.package, args.checkpoint, args.cache_dir, args.revision, args.digests
    )
    out = Console(highlight=False, soft_wrap=True)
    for group, findings in report.findings.items():
        out.print(f"[bold]{group}[/]")
        for finding in findings:
            mark = "[bold red]FAILED[/]" if finding.problem else "[green]ok[/]    "
            words = f"{finding.what:<32}  {finding.problem or finding.note}"
            out.print(f"  {mark}  {escape(visible(words))}")
    for group in report.skipped:
        out.print(f"[bold]{group}[/]\n  not run, because an earlier check failed")
    out.print("the package is sound" if report.ok else "[bold red]the package is broken[/]")
    return 0 if report.ok else 1
