"""A package in onnxruntime-genai: prompts with pictures in, tokens and logits out."""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime_genai as og
from PIL import Image

from surgery.answer.plugins import register_plugins
from surgery.answer.template import Template
from surgery.answer.trusted import check_config, check_processor, read_package, takes_pictures
from surgery.base.errors import PackageError, UserError, first_line
from surgery.base.frames import Frames
from surgery.base.pictures import Sizing, png
from surgery.base.prompts import IMAGE, IMAGE_PAD, VIDEO, VIDEO_PAD, turn
from surgery.base.videos import Clip, VideoProcessor, runs


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen; what is None stays as the package has it.

    Attributes:
        temperature: 0 for the likeliest token always.
        top_k: choose among this many tokens.
        top_p: choose among the likeliest tokens that together reach this probability.
        seed: repeat a run.
    """

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        """Refuse what means nothing."""
        if self.temperature is not None and not 0 <= self.temperature < float("inf"):
            raise UserError(f"temperature is {self.temperature}, must be 0 or more.")
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"top-k is {self.top_k}, must be 1 or more.")
        if self.seed is not None and not 0 <= self.seed < 1 << 31:
            raise UserError(f"seed is {self.seed}, must be from 0 to {(1 << 31) - 1:,}.")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UserError(f"top-p is {self.top_p}, must be above 0 and at most 1.")

    def options(self) -> dict[str, Any]:
        """Search options of the runtime."""
        seed = {} if self.seed is None else {"random_seed": self.seed}
        if self.temperature == 0:
            return {"do_sample": False}
        chosen = {"temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p}
        given = {name: value for name, value in chosen.items() if value is not None}
        return {"do_sample": True, **given, **seed} if given else seed


GREEDY = {"do_sample": False, "repetition_penalty": 1.0}
"""Search options under which the likeliest token is chosen, whatever the package says."""


def on_cpu(*parts: str) -> dict[str, Any]:
    """Overlay that runs the graphs of a package for another execution provider on the CPU."""
    return {"model": {part: {"session_options": {"provider_options": []}} for part in parts}}


ON_CPU = on_cpu("vision", "embedding", "decoder")
"""The same for a package with pictures."""


MOST_AT_ONCE = 4096
"""Patches of pictures of one size that the vision graph takes in one run, beside a video."""

Picture = Image.Image | Clip
"""What a prompt shows: a picture or a video."""


@dataclass(frozen=True)
class Prompt:
    """A tokenized prompt with its pictures; `tensors` is None where there can be none."""

    tensors: Any
    ids: npt.NDArray[np.int32]

    @property
    def length(self) -> int:
        """Tokens, those of the pictures included."""
        return len(self.ids)


class Runtime:
    """A loaded package."""

    def __init__(self, folder: str | Path, overlay: Mapping[str, Any] | None = None) -> None:
        """Load a package.

        Args:
            folder: the package.
            overlay: laid over its genai_config.json, as `ON_CPU` is.

        Raises:
            PackageError: no package there, or the runtime cannot load it.
        """
        self.configure(folder)
        if not takes_pictures(self.config):
            raise PackageError(
                f"{self.folder}: a package of a language model, without pictures: chat and verify "
                f"take it, this needs one of Qwen-VL."
            )
        name = self.config["model"]["vision"].get("config_filename", "processor_config.json")
        processor = read_package(self.folder, name)
        check_processor(self.folder / name, processor)
        self.sizing = Sizing.of(processor)
        self.videos = VideoProcessor.of(self.folder / name, processor)
        self.load(overlay)
        with one_line(self.folder, "load it"):
            self.processor = self.model.create_multimodal_processor()

    def configure(self, folder: str | Path) -> None:
        """Read genai_config.json.

        Raises:
            PackageError: no package there, or not what it must be.
        """
        self.folder = Path(folder)
        self.config = read_package(self.folder, "genai_config.json")
        check_config(self.folder, self.config)
        self.context = int(self.config["model"]["context_length"])
        self.template = Template(self.folder)

    def load(self, overlay: Mapping[str, Any] | None) -> None:
        """Load graphs and tokenizer.

        Raises:
            PackageError: the runtime cannot, or a plugin that the graphs run on is not installed.
        """
        if overlay is None:  # else its providers replace those of the package
            register_plugins(self.folder, self.config)
        with one_line(self.folder, "load it"):
            config = og.Config(str(self.folder))
            if overlay is not None:
                config.clear_providers()
                config.overlay(json.dumps(overlay))
            self.model = og.Model(config)
            self.tokenizer = og.Tokenizer(self.model)

    def chat(self, messages: Sequence[dict[str, str]]) -> str:
        """A conversation as the chat template writes it, ready for the next answer.

        Raises:
            PackageError: the template fails, or does not come to an end.
        """
        return self.template.apply(messages)

    def ask(self, question: str, pictures: int | Sequence[Picture] = 0) -> str:
        """One user turn, pictures first.

        Args:
            question: the text.
            pictures: how many there are; or, where videos are among them, all of them in order.

        Raises:
            UserError: the question holds the runtime's mark for a picture.
        """
        marks = IMAGE * pictures if isinstance(pictures, int) else places(pictures)
        return self.chat([{"role": "user", "content": turn(question, marks)}])

    def clip(self, video: Frames, fps: float | None = None, most: int | None = None) -> Clip:
        """A video as this package takes it; see `VideoProcessor.clip`.

        Raises:
            UserError: the package is of a family whose videos the runtime would place wrongly, or
                the video cannot be read.
        """
        kind = self.config["model"]["type"]
        if kind != "qwen3_vl":
            raise UserError(f"{self.folder}: of type {kind}; only Qwen3-VL packages take videos.")
        return self.videos.clip(video, fps, most)

    def prompt(self, text: str, pictures: Sequence[Picture] = ()) -> Prompt:
        """Tokenize a prompt that marks the place of each picture with `surgery.base.prompts.IMAGE`.

        Args:
            text: the prompt. The place of a video is marked with `surgery.base.prompts.VIDEO`.
            pictures: pictures, and videos from `clip`, in the order of their places.

        Raises:
            UserError: the prompt fills the context, or its places are not those of the pictures.
        """
        if any(isinstance(p, Clip) for p in pictures):
            return self.prompt_with_videos(text, pictures)
        return self.prompt_with_pictures(text, [p for p in pictures if not isinstance(p, Clip)])

    def prompt_with_pictures(self, text: str, pictures: Sequence[Image.Image]) -> Prompt:
        """As `prompt`, through the runtime's own processor."""
        sized = [png(self.sizing.apply(p)) for p in pictures]
        with one_line(self.folder, "read the prompt"):
            images = og.Images.open_bytes(*sized) if sized else None
            tensors = self.processor(text, images=images)
            ids = np.array(tensors["input_ids"].as_numpy()).reshape(-1)
        self.check_length(ids)
        return Prompt(tensors, ids)

    def prompt_with_videos(self, text: str, pictures: Sequence[Picture]) -> Prompt:
        """As `prompt`, with tensors made here: the runtime's processor has no videos.

        Each picture and each temporal patch stands in the prompt as a video of its own: the runtime
        reads the positions of their tokens from `video_grid_thw`, in which Qwen3-VL counts no time.
        So `image_grid_thw` is free to say what the vision graph takes in one run; see `runs`.
        """
        merge = self.videos.merge**2
        # a small picture shows the type of the pixels and the width of a row
        blank, _ = self.patches(Image.new("RGB", (self.sizing.unit, self.sizing.unit)))
        parts: list[tuple[str, list[list[int]], Clip | npt.NDArray[Any]]] = []
        for picture in pictures:
            if isinstance(picture, Clip):
                parts.append((picture.text, picture.grids, picture))
            else:
                rows, grid = self.patches(picture)
                parts.append((VIDEO_PAD * (math.prod(grid) // merge), [grid], rows))
        words = [part[0] for part in parts]
        with one_line(self.folder, "read the prompt"):
            ids = np.array(self.tokenizer.encode(filled(text, pictures, words)), np.int32)
        self.check_length(ids, " --max-frames bounds the frames of a video.")
        every = [grid for part in parts for grid in part[1]]
        values = np.empty((sum(map(math.prod, every)), blank.shape[1]), blank.dtype)
        start = 0
        for _, took, source in parts:
            end = start + sum(map(math.prod, took))
            if isinstance(source, Clip):
                self.videos.rows(source, values[start:end])
            else:
                values[start:end] = source
            start = end
        tensors = og.NamedTensors()
        tensors["input_ids"] = ids[None]
        tensors["pixel_values"] = values
        tensors["image_grid_thw"] = np.array(runs(every, self.most_at_once), np.int64)
        tensors["video_grid_thw"] = np.array(every, np.int64)
        tensors["num_image_tokens"] = np.array([len(values) // merge], np.int64)
        return Prompt(tensors, ids)

    @property
    def most_at_once(self) -> float:
        """Patches of one run of the vision graph; see `runs`.

        A graph of one size takes one picture. Several runs are for a CPU alone: for them, the
        runtime takes the features to lie in its memory.
        """
        if self.sizing.fixed is not None:
            return 0
        options = self.config["model"]["vision"].get("session_options", {})
        return math.inf if options.get("provider_options") else MOST_AT_ONCE

    def patches(self, picture: Image.Image) -> tuple[npt.NDArray[Any], list[int]]:
        """Rows of one picture, and its grid; the runtime pads those of several to one number."""
        tensors = self.prompt_with_pictures(IMAGE, [picture]).tensors
        grid = np.array(tensors["image_grid_thw"].as_numpy()).reshape(-1).tolist()
        return np.array(tensors["pixel_values"].as_numpy()), grid

    def check_length(self, ids: npt.NDArray[np.int32], advice: str = "") -> None:
        """Refuse a prompt that fills the context.

        Raises:
            UserError: it does.
        """
        if len(ids) >= self.context:
            raise UserError(
                f"the prompt has {len(ids):,} tokens, the package takes {self.context - 1:,} "
                f"(context_length {self.context:,}). Ask less, or with smaller or fewer pictures."
                f"{advice}"
            )

    def generator(self, prompt: Prompt, steps: int, options: dict[str, Any]) -> Any:
        """A generator that has read a prompt, with room for `steps` more tokens."""
        # The runtime allocates the whole cache for max_length at once: no more than is needed.
        length = min(prompt.length + steps, self.context)
        vocabulary = int(self.config["model"]["vocab_size"])
        if "top_k" in options:
            options = {**options, "top_k": min(options["top_k"], vocabulary)}
        with one_line(self.folder, "start an answer"):
            params = og.GeneratorParams(self.model)
            params.set_search_options(max_length=length, **options)
            generator = og.Generator(self.model, params)
            self.read(generator, prompt)
            return generator

    def read(self, generator: Any, prompt: Prompt) -> None:
        """Let a generator read a prompt."""
        generator.set_inputs(prompt.tensors)

    def generate(self, prompt: Prompt, steps: int, options: dict[str, Any]) -> Iterator[int]:
        """Tokens of an answer, one by one, the end token included."""
        yield from self.tokens(self.generator(prompt, steps, options), steps)

    def tokens(self, generator: Any, steps: int) -> Iterator[int]:
        """The next tokens of a generator, at most `steps`, the end token included."""
        for _ in range(steps):
            if generator.is_done():
                return
            with one_line(self.folder, "answer"):
                generator.generate_next_token()
                token = int(generator.get_next_tokens()[0])
            yield token

    def follow(self, prompt: Prompt, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        """Logits `[len(tokens), V]` before each token of a given answer (teacher forcing)."""
        generator = self.generator(prompt, len(tokens) + 1, GREEDY)
        rows = []
        for token in tokens:
            logits = np.asarray(generator.get_logits(), np.float32)
            rows.append(logits.reshape(-1, logits.shape[-1])[-1].copy())
            if len(rows) < len(tokens):
                generator.append_tokens(np.array([[token]], np.int32))
        return np.stack(rows)

    def hidden_states(self, prompt: Prompt) -> npt.NDArray[np.float32]:
        """The decoder's last hidden states of a prompt, `[prompt.length, H]`.

        The last row, divided by its norm, is what Qwen3-VL-Embedding takes for the prompt.

        Raises:
            PackageError: the package was built without `--hidden-states`.
        """
        generator = self.generator(prompt, 1, GREEDY)
        generator.get_logits()
        try:
            found = np.asarray(generator.get_output("hidden_states"), np.float32)
        except RuntimeError as e:
            raise PackageError(
                f"{self.folder}: has no hidden_states: build it with --hidden-states."
            ) from e
        return found.reshape(-1, found.shape[-1])[: prompt.length].copy()

    def text(self, tokens: Sequence[int]) -> str:
        """Tokens as text, special ones left out."""
        return str(self.tokenizer.decode(np.array(tokens, np.int32)))


def places(pictures: Sequence[Picture]) -> str:
    """The marks for pictures and videos in a user turn."""
    return "".join(VIDEO if isinstance(p, Clip) else IMAGE for p in pictures)


def filled(text: str, pictures: Sequence[Picture], words: Sequence[str]) -> str:
    """A prompt with words in the places of its pictures.

    Raises:
        UserError: its places are not those of the pictures.
    """
    parts = re.split(f"({re.escape(IMAGE_PAD)}|{re.escape(VIDEO_PAD)})", text)
    wanted = [VIDEO_PAD if isinstance(p, Clip) else IMAGE_PAD for p in pictures]
    if parts[1::2] != wanted:
        raise UserError(
            f"the prompt has {' '.join(parts[1::2]) or 'no places'}, needs {' '.join(wanted)}."
        )
    return "".join(a + b for a, b in zip(parts[::2], [*words, ""]))


@contextlib.contextmanager
def one_line(folder: Path, doing: str) -> Iterator[None]:
    """Turn whatever the runtime raises into a `PackageError` of one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as e:  # RuntimeError, and what its bindings raise for a number out of range
        raise PackageError(f"{folder}: onnxruntime-genai cannot {doing}: {first_line(e)}") from e
