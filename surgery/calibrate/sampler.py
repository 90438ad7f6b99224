"""Tokens that the model itself writes: calibration without a byte from outside.

Samples of the model replace real text: its layers see the inputs that they see in use. Half of
the rows start a document, half start a user's turn, and some are answers about pictures, because
a picture's tokens never come up in text.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from surgery.answer.runtime import Prompt, Runtime
from surgery.base.demo import DEMO
from surgery.base.pictures import open_picture
from surgery.base.processes import return_memory
from surgery.calibrate.pieces import Array
from surgery.calibrate.positions import positions

TEXTS = ("What is in this picture?", "Describe this picture in detail.")
"""What is asked about a picture, in turn."""
USER = "<|im_start|>user\n"
"""How a user's turn starts."""
ROWS = 8
"""Rows that are sampled together: their cache has to fit in memory."""


@dataclass(frozen=True)
class Tokens:
    """Rows of one length, and what a picture among them looks like.

    Attributes:
        ids: int64 [B, S].
        features: float32 [M, W], what the vision graph makes of the pictures; M is 0 without.
        places: int64 [3, B, S], positions on the three axes.
    """

    ids: npt.NDArray[np.int64]
    features: npt.NDArray[np.float32]
    places: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Answered:
    """A prompt with its answer, its pictures not encoded yet.

    Attributes:
        ids: int64 [S].
        pixels: float32 [P, W], patches of its pictures; P is 0 without.
        grids: int64 [N, 3], of each picture.
    """

    ids: npt.NDArray[np.int64]
    pixels: npt.NDArray[np.float32]
    grids: npt.NDArray[np.int64]


class Sampler:
    """The graphs of a package as sessions, and the runtime for prompts with pictures.

    One large graph is in memory at a time besides the runtime, which holds all of them: prompts and
    answers about pictures come first, then the runtime is released, pictures are encoded, and last
    comes text.

    Args:
        package: a package for the CPU.
        seed: of all draws.
    """

    def __init__(self, package: Path, seed: int = 0) -> None:
        self.package, self.rng = package, np.random.default_rng(seed)
        self.seed = seed
        self.config = json.loads((package / "genai_config.json").read_text(encoding="utf-8"))
        self.model = self.config["model"]
        self.runtime: Runtime | None = Runtime(package)
        self.user = self.encode(USER)
        self.embedding = self.session("embedding")
        self.width = self.embedding.get_inputs()[1].shape[1]

    def encode(self, text: str) -> list[int]:
        """Tokens of a text, none of which stands for a picture."""
        assert self.runtime is not None, "texts are read before release"
        ids = [int(token) for token in self.runtime.tokenizer.encode(text)]
        return [token for token in ids if token not in self.marks]

    def release(self) -> None:
        """Let go of the runtime."""
        self.runtime = None
        gc.collect()
        return_memory()

    @property
    def marks(self) -> list[int]:
        """Tokens that stand for pictures and videos: nothing may be drawn that has no features."""
        return [self.model[key] for key in ("image_token_id", "video_token_id")]

    def session(self, part: str) -> ort.InferenceSession:
        """A graph of the package on the CPU."""
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.enable_cpu_mem_arena = False  # results, which outlive the session, would keep it
        return ort.InferenceSession(
            self.package / self.model[part]["filename"], options,
            providers=["CPUExecutionProvider"],
        )  # fmt: skip

    def embed(self, tokens: Tokens) -> dict[str, Array]:
        """What the decoder reads of some rows, without a cache."""
        names = [output.name for output in self.embedding.get_outputs()]
        found = self.embedding.run(
            names, {"input_ids": tokens.ids, "image_features": tokens.features}
        )
        rows, length = tokens.ids.shape
        return {
            **dict(zip(names, found, strict=True)),
            "attention_mask": np.ones((rows, length), np.int64),
            "position_ids": tokens.places,
        }

    def nothing(self) -> npt.NDArray[np.float32]:
        """Features of no picture."""
        return np.zeros((0, self.width), np.float32)

    def text(
        self, rows: int, length: int, tell: Callable[[int], None] = lambda more: None
    ) -> Iterator[Tokens]:
        """Rows of text that the model writes at temperature 1.

        Args:
            rows: how many, half of them from the start of a document, half from a user's turn.
            length: tokens of a row.
            tell: called with the number of tokens that each step adds.
        """
        decoder = Decoding(self)
        start = [int(self.model["bos_token_id"])]
        together = min(ROWS, -(-rows // 2))
        for first in range(0, rows, together):
            count = min(together, rows - first)
            prompt = start if (first // together) % 2 == 0 else self.user
            ids = decoder.write(np.tile(np.array(prompt, np.int64), (count, 1)), length, tell)
            places = np.broadcast_to(np.arange(length), (3, count, length)).astype(np.int64)
            yield Tokens(ids, self.nothing(), places)

    def pictures(self, count: int, steps: int) -> Iterator[Answered]:
        """Prompts about the demo's pictures with the answers that the model samples.

        Args:
            count: how many.
            steps: most tokens of an answer.
        """
        files = sorted((DEMO / "images").glob("*.png"))
        files += sorted((DEMO / "questions" / "images").glob("*.png"))
        for i, file in enumerate(files[:count]):
            yield self.conversation(TEXTS[i % len(TEXTS)], [file], None, steps, i)

    def conversation(
        self,
        question: str,
        pictures: Sequence[Path],
        answer: str | None,
        steps: int,
        number: int,
    ) -> Answered:
        """A question in the chat template, with an answer.

        Args:
            question: what the user asks.
            pictures: files, in front of the question.
            answer: of the model; None lets it write one, at temperature 1.
            steps: most tokens of an answer that it writes.
            number: added to the seed.

        Raises:
            UserError: a picture cannot be read, or the prompt is longer than the context.
        """
        runtime = self.runtime
        assert runtime is not None, "conversations come before release"
        sized = [runtime.sizing.apply(open_picture(file)) for file in pictures]
        prompt = runtime.prompt(runtime.ask(question, len(sized)), sized)
        if answer is not None:
            return answered(prompt, self.encode(answer))
        options = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0,
                   "random_seed": self.seed + number}  # fmt: skip
        written = list(runtime.generate(prompt, steps, options))
        stop = next((i for i, token in enumerate(written) if token in self.marks), len(written))
        return answered(prompt, written[:stop])

    def rows(self, ids: npt.NDArray[np.int64], together: int = ROWS) -> Iterator[Tokens]:
        """Rows [B, S] of text, a few at a time."""
        for start in range(0, len(ids), together):
            part = ids[start : start + together]
            places = np.broadcast_to(np.arange(part.shape[1]), (3, *part.shape)).astype(np.int64)
            yield Tokens(part, self.nothing(), places)

    def encoded(self, parts: list[Answered]) -> Iterator[Tokens]:
        """Prompts with answers as rows, their pictures encoded; the list ends up empty."""
        image, merge = self.model["image_token_id"], self.model["vision"]["spatial_merge_size"]
        vision = self.session("vision") if any(len(part.pixels) for part in parts) else None
        while parts:
            part = parts.pop(0)  # pixels are large
            features = self.nothing()
            if vision is not None and len(part.pixels):
                feeds = {"pixel_values": part.pixels, "image_grid_thw": part.grids}
                (features,) = vision.run(["image_features"], feeds)
            grids = [(int(t), int(h), int(w)) for t, h, w in part.grids]
            places = positions(part.ids.tolist(), image, grids, merge)
            yield Tokens(part.ids[None], features, places[:, None])


def answered(prompt: Prompt, answer: Sequence[int]) -> Answered:
    """A prompt with its answer as one row."""
    ids = np.concatenate([prompt.ids, np.array(answer, np.int64)]).astype(np.int64)
    if "pixel_values" not in prompt.tensors:
        return Answered(ids, np.zeros((0, 0), np.float32), np.zeros((0, 3), np.int64))
    pixels = np.array(prompt.tensors["pixel_values"].as_numpy(), np.float32)
    grids = np.array(prompt.tensors["image_grid_thw"].as_numpy(), np.int64)
    return Answered(ids, pixels.reshape(-1, pixels.shape[-1]), grids.reshape(-1, 3))


class Decoding:
    """Sampling several rows at once, on one cache that grows in place."""

    def __init__(self, sampler: Sampler) -> None:
        self.sampler = sampler
        self.session = sampler.session("decoder")
        self.inputs = {port.name: port for port in self.session.get_inputs()}

    def write(
        self, prompt: npt.NDArray[np.int64], length: int, tell: Callable[[int], None]
    ) -> npt.NDArray[np.int64]:
        """Rows that start with a prompt [B, P] and go on to `length` tokens, [B, length]."""
        rows, known = prompt.shape
        ids = np.empty((rows, length), np.int64)
        ids[:, :known] = prompt
        cache = self.cache(rows, length)
        done = 0
        while known < length:
            logits = self.step(ids[:, done:known], done, cache)
            ids[:, known] = self.draw(logits)
            done, known = known, known + 1
            tell(rows)
        return ids

    def cache(self, rows: int, length: int) -> dict[str, ort.OrtValue]:
        """An empty cache with room for all rows; each part is both past and present."""
        found = {}
        for name, port in self.inputs.items():
            if name.startswith("past_key_values."):
                _, heads, _, width = port.shape
                array = np.zeros((rows, heads, length, width), np.float32)
                found[name] = ort.OrtValue.ortvalue_from_numpy(array)
        return found

    def step(
        self, ids: npt.NDArray[np.int64], past: int, cache: dict[str, ort.OrtValue]
    ) -> npt.NDArray[np.float32]:
        """Logits [B, V] behind some new tokens."""
        rows, new = ids.shape
        places = np.broadcast_to(np.arange(past, past + new), (3, rows, new)).astype(np.int64)
        feeds = self.sampler.embed(Tokens(ids, self.sampler.nothing(), places))
        feeds["attention_mask"] = np.ones((rows, past + new), np.int64)
        binding = self.session.io_binding()
        for name in self.inputs.keys() - cache.keys():
            binding.bind_cpu_input(name, np.ascontiguousarray(feeds[name]))
        for name, value in cache.items():
            binding.bind_ortvalue_input(name, value)
            binding.bind_ortvalue_output(name.replace("past_key_values", "present"), value)
        binding.bind_output("logits", "cpu")
        self.session.run_with_iobinding(binding)
        logits = binding.get_outputs()[-1]  # in the order in which they were bound
        return np.asarray(logits.numpy(), np.float32)[:, -1]

    def draw(self, logits: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
        """A token for each row, at temperature 1."""
        logits = logits.copy()
        logits[:, self.sampler.marks] = -np.inf
        noise = self.sampler.rng.gumbel(size=logits.shape)
        return np.asarray((logits + noise).argmax(-1), np.int64)
