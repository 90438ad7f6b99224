"""Where the time of an answer goes: onnxruntime's own profile of the three graphs of a package."""

from __future__ import annotations

import gc
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from surgery.answer.runtime import GREEDY, ON_CPU, Runtime
from surgery.answer.trusted import PARTS
from surgery.base.errors import PackageError

PHASES = "vision", "prefill", "decode"
"""The picture; the prompt, through embedding and decoder; each further token, through both."""

Event = dict[str, Any]


@dataclass(frozen=True)
class Share:
    """What nodes of one op type took in one phase.

    Attributes:
        seconds: their time, without that of nodes in their own branches.
        calls: how often one of them ran.
    """

    seconds: float
    calls: int


@dataclass(frozen=True)
class Profile:
    """The time of one answer.

    Attributes:
        tokens: tokens of the prompt, and of the answer.
        ops: by op type and phase; those that took the most time first.
    """

    tokens: tuple[int, int]
    ops: dict[str, dict[str, Share]]

    def seconds(self, phase: str) -> float:
        """Time of all nodes in a phase."""
        return sum(shares[phase].seconds for shares in self.ops.values() if phase in shares)


def profile(package: Path, question: str, pictures: Sequence[Image.Image], tokens: int) -> Profile:
    """Ask a package once, with onnxruntime's profiler on, and add up the times of its nodes.

    Graphs run on the CPU. An answer is not ended early, so that there is something to measure.

    Args:
        package: its folder.
        question: of the user.
        pictures: in front of it.
        tokens: length of the answer.

    Raises:
        UserError: the package cannot be loaded or asked, or the question does not fit.
    """
    with tempfile.TemporaryDirectory(prefix="surgery-profile-") as folder:
        overlay: dict[str, Any] = {
            part: {"session_options": {**section["session_options"], **profiler(folder, part)}}
            for part, section in ON_CPU["model"].items()
        }
        runtime = Runtime(package, {"model": overlay})
        prompt = runtime.prompt(runtime.ask(question, len(pictures)), pictures)
        options = GREEDY | {"min_length": min(prompt.length + tokens, runtime.context)}
        answered = len(list(runtime.generate(prompt, tokens, options)))
        length = prompt.length
        del runtime, prompt
        gc.collect()  # a session writes its profile when it ends
        found: dict[str, dict[str, Share]] = {}
        for part in PARTS:
            for file in Path(folder).glob(f"{part}_*.json"):
                add(found, part, read(package, file))
    order = sorted(found, key=lambda op: -sum(s.seconds for s in found[op].values()))
    return Profile((length, answered), {op: found[op] for op in order})


def profiler(folder: str, part: str) -> dict[str, str]:
    """The session option that writes a profile, and the beginning of its file's name."""
    return {"enable_profiling": str(Path(folder) / part)}


def read(package: Path, file: Path) -> list[Event]:
    """The events of a profile.

    Raises:
        PackageError: onnxruntime has not finished it.
    """
    try:
        events: list[Event] = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as e:
        raise PackageError(f"{package}: onnxruntime left no whole profile of {file.name}.") from e
    return events


def add(found: dict[str, dict[str, Share]], part: str, events: Sequence[Event]) -> None:
    """Add the nodes of one graph to what is known, by op type and phase.

    Of embedding and decoder, the first run is the prompt's; each later one is that of a token.
    """
    runs = sorted(e["ts"] for e in events if e["name"] == "model_run")
    for event, spent in alone([e for e in events if e.get("cat") == "Node"]):
        first = len(runs) < 2 or event["ts"] < runs[1]
        phase = "vision" if part == "vision" else "prefill" if first else "decode"
        shares = found.setdefault(event["args"]["op_name"], {})
        old = shares.get(phase, Share(0.0, 0))
        shares[phase] = Share(old.seconds + spent / 1e6, old.calls + 1)


def alone(nodes: Sequence[Event]) -> list[tuple[Event, float]]:
    """Each node's own microseconds: those of nodes in its branches are theirs."""
    spent = {id(node): float(node["dur"]) for node in nodes}
    open_: list[Event] = []
    for node in sorted(nodes, key=lambda n: (n["ts"], -n["dur"])):
        while open_ and open_[-1]["ts"] + open_[-1]["dur"] <= node["ts"]:
            open_.pop()
        if open_:
            spent[id(open_[-1])] -= node["dur"]
        open_.append(node)
    return [(node, max(spent[id(node)], 0.0)) for node in nodes]
