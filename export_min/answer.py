"""A checkpoint in PyTorch that answers the requests of another program.

The program that asks needs no torch in its own process. `python -m export_min answer` loads the
checkpoint once, then reads one request a line from standard input and writes one reply a line to
standard output; both are JSON objects. Arrays travel in .npy files whose paths the request names,
and the program that asks removes them.

The first reply tells that the checkpoint is loaded: `{"checkpoint": source}`. Then:

    {"ask": "prompt", "question": text, "pictures": [path, ...]}
        {"ids": [...]}                     token ids of the user turn, pictures first
    {"ask": "generate", "question": text, "pictures": [path, ...],
     "steps": most tokens, "stop": whether an end token ends the answer, "logits": path}
        {"tokens": [...], "text": text}    a greedy answer; writes float32 [tokens, V] to "logits"
    {"ask": "weight", "name": parameter, "weight": path}
        {}                                 writes float32 numbers of the parameter to "weight"
    {"ask": "replace", "name": parameter, "weight": path}
        {}                                 the answers that follow compute with this weight

An error in a request, or in the checkpoint, is a reply `{"error": line, "kind": class}` with the
class of the `UserError`; after an error in a request the next one may follow. Whatever libraries
print goes to standard error. The process ends as soon as standard input closes, in the middle of
an answer too, so that it never outlives the program that asks.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np

from export_min.checkpoint import Checkpoint, open_checkpoint
from surgery.base.errors import OutputError, UserError
from surgery.base.pictures import open_picture

if TYPE_CHECKING:
    from export_min.reference import Reference

Fields = dict[str, Any]


def serve(
    source: str | Path | None, cache_dir: str | None, revision: str | None, text: bool = False
) -> int:
    """Load a checkpoint and answer until standard input closes, which ends the process.

    Args:
        source: a local directory, a hub id, or the embedded demo (None or "demo").
        cache_dir: where the hub keeps its downloads.
        revision: branch, tag or commit on the hub.
        text: the checkpoint is a language model, of any family.

    Returns:
        The exit code where the checkpoint cannot be used.
    """
    replies, requests = own_stdout(), incoming()
    try:
        checkpoint = open_checkpoint(source, cache_dir, revision)
        reference = loaded(checkpoint, text)
    except UserError as e:
        send(replies, failure(e))
        return 2
    send(replies, {"checkpoint": reference.source})
    while True:
        try:
            reply = handle(reference, requests.get())
        except UserError as e:
            reply = failure(e)
        send(replies, reply)


def loaded(checkpoint: Checkpoint, text: bool) -> Reference:
    """A checkpoint in PyTorch.

    Raises:
        CheckpointError: it cannot be used.
    """
    if text:
        from export_min.text_reference import TextReference  # torch takes seconds to import

        return TextReference(checkpoint)
    from export_min.reference import Reference

    return Reference(checkpoint)


def own_stdout() -> TextIO:
    """Standard output for replies alone: what anything else prints goes to standard error."""
    sys.stdout.flush()
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return replies


def incoming() -> queue.SimpleQueue[bytes]:
    """Lines of standard input as they come; a thread reads them, and ends the process with it."""
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    source = os.fdopen(os.dup(0), "rb")

    def read() -> None:
        for line in source:
            lines.put(line)
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    return lines


def send(replies: TextIO, reply: Fields) -> None:
    """Write one reply."""
    replies.write(json.dumps(reply) + "\n")
    replies.flush()


def failure(error: UserError) -> Fields:
    """The reply to what cannot be answered."""
    return {"error": str(error), "kind": type(error).__name__}


def handle(reference: Reference, line: bytes) -> Fields:
    """The reply to one request.

    Raises:
        UserError: the line is no request, or what it names cannot be used.
    """
    try:
        request = json.loads(line)
    except ValueError as e:
        raise UserError(f"not a request: {e}.") from e
    name = request.get("ask") if isinstance(request, dict) else None
    if name not in ASKS:
        raise UserError(f"not a request: ask is {name!r}, needs one of {', '.join(ASKS)}.")
    answer, needed = ASKS[name]
    for field, kind in needed.items():
        if not isinstance(request.get(field), kind):
            raise UserError(f"{name}: {field} is {request.get(field)!r}, needs {kind.__name__}.")
    return answer(reference, **{field: request[field] for field in needed})


def prompt(reference: Reference, question: str, pictures: list[str]) -> Fields:
    """Token ids of a question with its pictures."""
    return {"ids": inputs(reference, question, pictures)["input_ids"][0].tolist()}


def generate(
    reference: Reference, question: str, pictures: list[str], steps: int, stop: bool, logits: str
) -> Fields:
    """A greedy answer; the logits that chose its tokens go to a file."""
    answer = reference.generate(inputs(reference, question, pictures), steps, stop)
    try:
        np.save(logits, answer.logits)
    except OSError as e:
        raise OutputError(f"{logits}: cannot be written: {e.strerror or e}.") from e
    return {"tokens": answer.tokens, "text": reference.text(answer.tokens)}


def weight(reference: Reference, name: str, weight: str) -> Fields:
    """The numbers of a parameter go to a file."""
    numbers = reference.weight(name)
    try:
        np.save(weight, numbers)
    except OSError as e:
        raise OutputError(f"{weight}: cannot be written: {e.strerror or e}.") from e
    return {}


def replace(reference: Reference, name: str, weight: str) -> Fields:
    """Compute with another weight from now on."""
    try:
        numbers = np.load(weight)
    except (OSError, ValueError) as e:
        raise UserError(f"{weight}: no array can be read: {e}.") from e
    reference.replace([(name, numbers)])
    return {}


def inputs(reference: Reference, question: str, pictures: list[str]) -> Fields:
    """What the model takes for a question."""
    images = [open_picture(path) for path in pictures]
    return reference.inputs(reference.chat(question, len(images)), images)


ASKS: dict[str, tuple[Callable[..., Fields], dict[str, type]]] = {
    "prompt": (prompt, {"question": str, "pictures": list}),
    "generate": (
        generate,
        {"question": str, "pictures": list, "steps": int, "stop": bool, "logits": str},
    ),
    "weight": (weight, {"name": str, "weight": str}),
    "replace": (replace, {"name": str, "weight": str}),
}
"""What can be asked, and the fields that a request needs."""
