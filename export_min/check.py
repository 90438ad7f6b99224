"""Run a checkpoint in PyTorch on a few prompts, to know that it is sound before exporting it."""

from __future__ import annotations

from pathlib import Path

from rich.progress import track

from export_min.checkpoint import DEMO, open_checkpoint
from surgery.console import console

PROMPTS = (
    ("greeting", "Hello, who are you?"),
    ("question", "What is the capital of France?"),
    ("short story", "Tell me a short story about a robot."),
    ("code", "Write a Python function that adds two numbers."),
)
PICTURE_PROMPT = "What is in this picture?"


def check(
    checkpoint: str | Path | None,
    output: str | Path,
    cache_dir: str | None = None,
    revision: str | None = None,
    max_new_tokens: int = 64,
) -> str:
    """Answer four text prompts and one about a picture; print the answers and save them.

    Args:
        checkpoint: a local directory or a hub id; the embedded demo by default.
        output: text file for the answers.
        cache_dir: where the hub keeps its downloads.
        revision: branch, tag or commit on the hub.
        max_new_tokens: length of an answer.

    Returns:
        What was saved.
    """
    from PIL import Image

    from export_min.reference import Reference

    source = open_checkpoint(checkpoint, cache_dir, revision)
    source.check_tokenizer()
    assert source.weights  # reads every header: a missing or broken shard shows here
    reference = Reference(source)
    picture = Image.open(next(iter(sorted((DEMO / "images").glob("*.png"))))).convert("RGB")
    tasks: list[tuple[str, str, list[Image.Image]]] = [
        (name, prompt, []) for name, prompt in PROMPTS
    ]
    tasks.append(("picture", PICTURE_PROMPT, [picture]))
    lines = [f"checkpoint: {source.source}"]
    for name, prompt, images in track(tasks, "check", console=console, transient=True):
        inputs = reference.inputs(reference.chat(prompt, len(images)), images)
        answer = reference.text(reference.generate(inputs, max_new_tokens).tokens)
        lines += ["", f"[{name}] {prompt}", answer]
    text = "\n".join(lines) + "\n"
    Path(output).write_text(text, encoding="utf-8")
    print(text)
    console.print(f"saved to {output}")
    return text
