"""Questions with known answers through a package, and side by side through PyTorch.

An answer is right when it is the expected one word for word, upper and lower case, surrounding
space and a final full stop aside. Where four numbers are expected, they are a box (left, top,
right, bottom), and right is a box that overlaps it by half (intersection over union). Both sides
answer greedily. They agree on a question when their answers are the same token for token, the
end token included. The KL divergence is that of the package's next-token distribution from
PyTorch's, KL(PyTorch || package) in nats, at each token of PyTorch's answer (the package follows
that answer whatever it would say itself), averaged over all tokens of all answers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from surgery.answer.pytorch import PyTorch
from surgery.answer.questions import Question
from surgery.answer.runtime import GREEDY, Picture, Prompt, Runtime
from surgery.base.errors import UserError
from surgery.base.frames import open_frames
from surgery.base.pictures import open_picture

OVERLAP = 0.5
"""Overlap from which a box counts as found."""

ALL = "all"
"""The line of a summary that counts every kind."""


@dataclass(frozen=True)
class Verdict:
    """How one question went; what PyTorch said is None without PyTorch."""

    question: Question
    package: str
    """The package's answer."""
    pytorch: str | None = None
    same: bool | None = None
    """Whether the answers are the same token for token."""
    divergences: tuple[float, ...] = ()
    """KL(PyTorch || package) at each token of PyTorch's answer."""

    def record(self) -> dict[str, Any]:
        """The verdict for a JSON file."""
        found: dict[str, Any] = {
            "question": self.question.text,
            "expected": self.question.answer,
            "kind": self.question.kind,
            "package": self.package,
        }
        if self.pytorch is not None:
            kl = float(np.mean(self.divergences)) if self.divergences else 0.0
            found |= {"pytorch": self.pytorch, "same": self.same, "kl": kl}
        return found


def evaluate(
    runtime: Runtime,
    questions: Sequence[Question],
    pytorch: PyTorch | None = None,
    max_tokens: int = 64,
    report: Callable[[int], None] = lambda done: None,
    sampling: tuple[float | None, int | None] = (None, None),
) -> list[Verdict]:
    """Ask every question.

    Args:
        runtime: the package.
        questions: what to ask.
        pytorch: the checkpoint to compare with; None for the package alone.
        max_tokens: most tokens of an answer.
        report: called with the number of questions done.
        sampling: frames of a second of video and most frames of a video; see `Runtime.clip`.

    Raises:
        UserError: a picture or video cannot be read, the package takes no videos, or PyTorch is to
            be asked about one.
    """
    verdicts = []
    for done, question in enumerate(questions, 1):
        pictures = [runtime.sizing.apply(open_picture(path)) for path in question.pictures]
        clips = [runtime.clip(open_frames(path), *sampling) for path in question.videos]
        shown: list[Picture] = [*pictures, *clips]
        prompt = runtime.prompt(runtime.ask(question.text, shown), shown)
        if pytorch is None:
            tokens = list(runtime.generate(prompt, max_tokens, GREEDY))
            verdicts.append(Verdict(question, runtime.text(tokens)))
        elif clips:
            raise UserError(f"{question.text!r}: PyTorch is asked about pictures and text only.")
        else:
            verdicts.append(compare(runtime, prompt, pictures, question, pytorch, max_tokens))
        report(done)
    return verdicts


def compare(
    runtime: Runtime,
    prompt: Prompt,
    pictures: Sequence[Image.Image],
    question: Question,
    pytorch: PyTorch,
    max_tokens: int,
) -> Verdict:
    """Ask both: the package follows PyTorch's answer, and where it would not, gives its own."""
    asked = pytorch.prompt(question.text, pictures)
    if not np.array_equal(asked.ids, prompt.ids):
        raise UserError(
            f"{question.text!r}: the package's prompt is not PyTorch's. Is it the checkpoint that "
            f"the package was made from? python -m surgery verify compares the two."
        )
    answer = pytorch.generate(asked, max_tokens)
    logits = runtime.follow(prompt, answer.tokens)
    tokens = list(answer.tokens)
    if not np.array_equal(logits.argmax(-1), tokens):
        tokens = list(runtime.generate(prompt, max_tokens, GREEDY))
    return Verdict(
        question,
        runtime.text(tokens),
        answer.text,
        tokens == answer.tokens,
        tuple(float(kl) for kl in divergence(answer.logits, logits)),
    )


def divergence(p: npt.NDArray[np.float32], q: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """KL(p || q) of each row of logits, in nats."""
    a, b = log_softmax(p), log_softmax(q)
    return np.asarray(np.maximum((np.exp(a) * (a - b)).sum(-1), 0))  # rounding may leave -1e-17


def log_softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Logarithms of the probabilities of each row, in float64."""
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))


def right(answer: str, expected: str) -> bool:
    """Whether an answer is the expected one, as the module says."""
    if plain(answer) == plain(expected):
        return True
    found, wanted = box(answer), box(expected)
    return found is not None and wanted is not None and overlap(found, wanted) >= OVERLAP


def box(text: str) -> tuple[float, ...] | None:
    """Left, top, right, bottom, where a text is four numbers, brackets and commas aside."""
    words = re.sub(r"[\[\](),]", " ", text).split()
    try:
        sides = tuple(float(word) for word in words)
    except ValueError:
        return None
    return sides if len(sides) == 4 else None


def overlap(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union of two boxes."""
    width, height = (max(0.0, min(a[i + 2], b[i + 2]) - max(a[i], b[i])) for i in (0, 1))
    areas = [max(0.0, r - x) * max(0.0, d - y) for x, y, r, d in (a, b)]
    union = sum(areas) - width * height
    return width * height / union if union > 0 else 0.0


def plain(text: str) -> str:
    """Text without what does not count."""
    return text.strip().removesuffix(".").casefold()


def summarize(verdicts: Iterable[Verdict]) -> dict[str, dict[str, float]]:
    """For each kind of question, in order of appearance, and for `ALL` at the end.

    Returns:
        "count", "package" (share of right answers), and with PyTorch "pytorch", "agreement" (share
        of equal answers) and "kl" (mean over tokens).
    """
    groups: dict[str, list[Verdict]] = {}
    every = list(verdicts)
    for verdict in every:
        groups.setdefault(verdict.question.kind, []).append(verdict)
    return {kind: figures(group) for kind, group in [*groups.items(), (ALL, every)]}


def figures(group: Sequence[Verdict]) -> dict[str, float]:
    """The line of one kind."""
    count = len(group)
    found: dict[str, float] = {
        "count": count,
        "package": sum(right(v.package, v.question.answer) for v in group) / count,
    }
    if group[0].pytorch is not None:
        tokens = [kl for v in group for kl in v.divergences]
        found["pytorch"] = sum(right(v.pytorch or "", v.question.answer) for v in group) / count
        found["agreement"] = sum(bool(v.same) for v in group) / count
        found["kl"] = float(np.mean(tokens)) if tokens else 0.0
    return found
