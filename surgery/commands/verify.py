"""Check a package: files, configurations, graphs, the runtime, and logits against PyTorch.

Exit code 0 when everything holds, 1 when something does not.
"""

from __future__ import annotations

import argparse


def configure(p: argparse.ArgumentParser) -> None:
    """The package, and what to compare it with."""
    p.add_argument("package", metavar="DIR", help="a package")
    add_checkpoint(p, "--checkpoint", "compare logits with PyTorch")


def add_checkpoint(p: argparse.ArgumentParser, name: str, purpose: str) -> None:
    """The option that names a checkpoint, and where the hub keeps it."""
    p.add_argument(
        name,
        metavar="CHECKPOINT",
        help=f"{purpose}: a local directory, a hub id, or demo for the embedded one",
    )
    p.add_argument("-c", "--cache-dir", "--cache_dir", metavar="DIR", help="the hub's downloads")
    p.add_argument("--revision", help="branch, tag or commit on the hub")


def main(args: argparse.Namespace) -> int:
    """Print the findings as a table, a line a check."""
    from rich.console import Console
    from rich.markup import escape

    from surgery.verify import verify_package

    report = verify_package(args.package, args.checkpoint, args.cache_dir, args.revision)
    out = Console(highlight=False, soft_wrap=True)
    for group, findings in report.findings.items():
        out.print(f"[bold]{group}[/]")
        for finding in findings:
            mark = "[bold red]FAILED[/]" if finding.problem else "[green]ok[/]    "
            out.print(f"  {mark}  {finding.what:<32}  {escape(finding.problem or finding.note)}")
    for group in report.skipped:
        out.print(f"[bold]{group}[/]\n  not run")
    out.print("the package is sound" if report.ok else "[bold red]the package is broken[/]")
    return 0 if report.ok else 1
