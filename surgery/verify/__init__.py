"""Check a package: complete, consistent, runnable, and equal to PyTorch.

The checks are in groups, and each group relies on the groups before it. After a group with a
problem the rest is not run, so that one fault does not cause many messages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from surgery.base.errors import UserError, first_line
from surgery.verify.browser import check_browser, is_for_browser
from surgery.verify.configs import check_configs
from surgery.verify.digests import check_digests
from surgery.verify.files import check_files
from surgery.verify.finding import Finding
from surgery.verify.graphs import check_graphs
from surgery.verify.logits import check_logits
from surgery.verify.opened import Opened
from surgery.verify.runtime import check_runtime
from surgery.verify.text import check_text_graph, check_text_logits, check_text_runtime
from surgery.verify.tokenizer import check_tokenizer

__all__ = ["Finding", "Report", "verify_package"]

Group = Callable[[], Iterator[Finding]]
Check = Callable[[Opened], Iterator[Finding]]

GROUPS: dict[str, Check] = {
    "files": check_files,
    "configurations": check_configs,
    "tokenizer": check_tokenizer,
    "graphs run": check_graphs,
    "onnxruntime-genai": check_runtime,
}
TEXT_GROUPS: dict[str, Check] = {
    "files": check_files,
    "configurations": check_configs,
    "tokenizer": check_tokenizer,
    "graphs run": check_text_graph,
    "onnxruntime-genai": check_text_runtime,
}
"""The groups of a package of a language model."""


@dataclass(frozen=True)
class Report:
    """The findings of the groups that ran, and the names of those that did not."""

    findings: dict[str, list[Finding]]
    skipped: list[str]

    @property
    def ok(self) -> bool:
        """Whether no check found a problem."""
        return not any(f.problem for found in self.findings.values() for f in found)


def verify_package(
    folder: str | Path,
    checkpoint: str | Path | None = None,
    cache_dir: str | None = None,
    revision: str | None = None,
    digests: bool = True,
) -> Report:
    """Check a package.

    Args:
        folder: the package, for onnxruntime-genai or for transformers.js.
        checkpoint: the checkpoint whose logits in PyTorch the package must match: a directory, a
            hub id, or "demo". By default, logits are not compared.
        cache_dir: the download cache of the Hugging Face hub.
        revision: branch, tag or commit on the hub.
        digests: compare every byte of the package with the manifest.

    Raises:
        UserError: the folder holds no package, or the checkpoint cannot be used.
    """
    folder = Path(folder)
    if is_for_browser(folder):
        if checkpoint is not None:
            raise UserError(
                f"--checkpoint {checkpoint}: {folder} is for transformers.js, whose logits are not "
                f"compared here. Leave --checkpoint out."
            )
        groups: dict[str, Group] = {"transformers.js": partial(check_browser, folder)}
    else:
        package = Opened(folder)
        checks = GROUPS if package.pictured else TEXT_GROUPS
        compared = check_logits if package.pictured else check_text_logits
        groups = {name: partial(check, package) for name, check in checks.items()}
    if digests:
        groups["digests"] = partial(check_digests, folder)
    if checkpoint is not None:
        groups["PyTorch"] = partial(compared, package, checkpoint, cache_dir, revision)
    findings: dict[str, list[Finding]] = {}
    skipped: list[str] = []
    for name, group in groups.items():
        if any(f.problem for found in findings.values() for f in found):
            skipped.append(name)
        else:
            findings[name] = list(guarded(name, group))
    return Report(findings, skipped)


def guarded(name: str, group: Group) -> Iterator[Finding]:
    """The findings of a group; what it cannot cope with in a package is one more."""
    try:
        yield from group()
    except UserError:
        raise
    except Exception as e:  # a graph or a file of a kind that nobody thought of
        yield Finding(name, problem=f"cannot be checked: {type(e).__name__}: {first_line(e)}")
