"""Run a checkpoint in PyTorch on a few prompts, to see before an export that it works."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from export_min.checkpoint import open_checkpoint
from surgery.base.console import announce, progress
from surgery.base.errors import CheckpointError, OutputError
from surgery.base.pictures import open_picture

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
    image: str | Path | None = None,
) -> str:
    """Answer four text prompts and a prompt with a picture; print and save the answers.

    Args:
        checkpoint: a local directory or a hub id. By default, the demo checkpoint that the project
            contains.
        output: text file for the answers.
        cache_dir: the download cache of the Hugging Face hub.
        revision: branch, tag or commit on the hub.
        max_new_tokens: largest number of tokens in an answer.
        image: the picture. By default, a red circle.

    Returns:
        The text that was saved.

    Raises:
        CheckpointError: the checkpoint cannot be used, or its logits are not finite.
        UserError: the picture cannot be read, or the answers cannot be saved.
    """
    source = open_checkpoint(checkpoint, cache_dir, revision)
    picture = circle() if image is None else open_picture(image)
    from export_min.reference import Reference  # late, because importing torch takes seconds

    reference = Reference(source)
    tasks: list[tuple[str, str, list[Image.Image]]] = [(*prompt, []) for prompt in PROMPTS]
    tasks.append(("picture", PICTURE_PROMPT, [picture]))
    lines = [f"checkpoint: {source.source}"]
    with progress() as bar:
        task = bar.add_task("check", total=len(tasks))
        for name, prompt, images in tasks:
            bar.update(task, description=name)
            inputs = reference.inputs(reference.chat(prompt, len(images)), images)
            answer = reference.generate(inputs, max_new_tokens)
            if not np.isfinite(answer.logits).all():
                raise CheckpointError(
                    f"{source.source}: the logits for the prompt {prompt!r} are not finite."
                )
            lines += ["", f"[{name}] {prompt}", reference.text(answer.tokens)]
            bar.advance(task)
    text = "\n".join(lines) + "\n"
    print(text, end="")
    try:
        Path(output).write_text(text, encoding="utf-8")
    except OSError as e:
        raise OutputError(f"{output}: cannot be written: {e.strerror}.") from e
    announce(f"saved to {output}")
    return text


def circle() -> Image.Image:
    """Draw a red circle on a white background."""
    picture = Image.new("RGB", (128, 128), "white")
    ImageDraw.Draw(picture).ellipse((32, 32, 96, 96), fill="red")
    return picture
