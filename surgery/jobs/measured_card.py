"""What was measured of a package, in its README: the table of `eval`, and one question with its
picture and the package's own answer.

The README and the picture take their places in one step with the manifest that lists them, so that
`verify` finds every byte as it was written.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnxruntime_genai as og

from surgery.answer.evaluation import ALL, Verdict
from surgery.base import manifest
from surgery.base.console import announce
from surgery.base.errors import PackageError
from surgery.base.files import read_text
from surgery.base.pictures import open_picture, png
from surgery.base.staging import amended

CARD, PICTURE = "README.md", "example.png"
START, END = "<!-- measured by python -m surgery eval -->", "<!-- end -->"
PART = re.compile(rf"\n*{re.escape(START)}.*?(?:{re.escape(END)}\n?|\Z)", re.DOTALL)
"""What an earlier measurement wrote."""
COLUMNS = {"package": "right", "pytorch": "PyTorch right", "agreement": "same answer", "kl": "KL"}
SHOWN = 2000
"""Characters of a question or an answer that the README repeats."""


def write_measured(
    package: str | Path,
    summary: Mapping[str, Mapping[str, float]],
    verdicts: Sequence[Verdict],
    questions: str,
) -> None:
    """Write figures and an example into a package's README; those of an earlier run go.

    The example is the first question about one picture, right or wrong. The picture is stored as
    `example.png`, without what else its file holds (place, time, camera).

    Args:
        package: the package that gave these answers.
        summary: the figures of `summarize`.
        verdicts: the answers.
        questions: what the set of questions is called.

    Raises:
        PackageError: as `read_card`.
        OutputError: it cannot be written.
    """
    package = Path(package)
    card = read_card(package)
    example = next((v for v in verdicts if shows_one_picture(v)), None)
    with amended(package, without=[PICTURE]) as stage:
        told = section(summary, questions, example)
        (stage / CARD).write_text(f"{unmeasured(card)}\n{told}", encoding="utf-8")
        if example is not None:
            (stage / PICTURE).write_bytes(png(open_picture(example.question.pictures[0])))
    announce(f"wrote {package / CARD}")


def read_card(package: Path) -> str:
    """The README of a package that can be measured.

    Raises:
        PackageError: it has none, or no manifest.
    """
    if manifest.read(package) is None:
        raise PackageError(f"{package}: {manifest.NAME}, its manifest, is missing. Build it again.")
    return read_text(package / CARD, PackageError)


def unmeasured(card: str) -> str:
    """A README without what an earlier measurement wrote."""
    return PART.sub("\n", card)


def shows_one_picture(verdict: Verdict) -> bool:
    """Whether a question is about one picture and nothing else."""
    return len(verdict.question.pictures) == 1 and not verdict.question.videos


def section(
    summary: Mapping[str, Mapping[str, float]], questions: str, example: Verdict | None
) -> str:
    """The part of the README."""
    names = [name for name in COLUMNS if name in summary[ALL]]
    head = ["kind", "questions", *(COLUMNS[name] for name in names)]
    rows = [head, ["---"] * len(head)]
    for kind, row in summary.items():
        cells = [f"{row[n]:.1e}" if n == "kl" else f"{row[n]:.1%}" for n in names]
        rows.append([cell(kind), f"{row['count']:,.0f}", *cells])
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    told = f"Greedy answers to `{cell(questions)}` in onnxruntime-genai {og.__version__}"
    if "agreement" in names:
        told += (
            ", side by side with PyTorch in float32. Same answer: token for token. KL: mean "
            "divergence of the next token from PyTorch's, in nats"
        )
    parts = [START, "## Measured", f"{told}.", table]
    if example is not None:
        said = f"{indented(example.question.text)}\n\nThe package's answer:\n\n"
        parts += [f"![The picture of the example]({PICTURE})", said + indented(example.package)]
    return "\n\n".join(parts) + f"\n\n{END}\n"


def cell(text: str) -> str:
    """A text of somebody else in a table or a line of Markdown."""
    return html.escape(" ".join(text.split())).replace("|", "&#124;").replace("`", "&#96;")


def indented(text: str) -> str:
    """A text of somebody else as a block of code, which Markdown takes for nothing else."""
    lines = text[:SHOWN].replace(END, "").splitlines() or [""]
    return "\n".join(f"    {line}" for line in lines)
