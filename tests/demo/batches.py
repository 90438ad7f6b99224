"""From scenes and questions to tensors.

A row of a batch is one conversation prefix that ends in pictures, followed by several questions
with their answers. Every question sees the prefix and itself, never the other questions, and its
positions start where the prefix ends: a row of n questions is n single-turn chats that share the
cost of seeing the pictures.

    <|im_start|>user\\n<|vision_start|><|image_pad|>..<|vision_end|>     the prefix
    what color is the shape?<|im_end|>\\n<|im_start|>assistant\\nblue<|im_end|>   a question
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from random import Random

import easy_vqa
import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer

from tests.demo import tasks
from tests.demo.tasks import Question, Scene

PATCH, MERGE = 16, 2
CELL = PATCH * MERGE
PREFIX = "<|im_start|>user\n"
PICTURE = "<|vision_start|><|image_pad|><|vision_end|>"
ASK = "{question}<|im_end|>\n<|im_start|>assistant\n"
ANSWER = "{answer}<|im_end|>"
IGNORE = -100
BOX_SCALE = 6  # of shares of the picture, so that they weigh about as much as sides in cells
QUESTIONS = 8  # about a picture that we draw


@dataclass
class Row:
    """Pictures, what they show if we drew them, and questions about them."""

    pictures: list[Image.Image]
    questions: list[Question]
    scenes: list[Scene]


@dataclass
class Batch:
    """What the model takes, the answers, and which question each answer token belongs to."""

    input_ids: torch.Tensor
    positions: torch.Tensor
    mask: torch.Tensor
    labels: torch.Tensor
    question: torch.Tensor
    questions: list[Question]
    pixels: torch.Tensor | None
    grids: torch.Tensor | None
    drawn: torch.Tensor  # of the image tokens, those of pictures whose scene we know


def enlarge(picture: Image.Image) -> Image.Image:
    """As the image processor does: easy-VQA's 64x64 is below the smallest area, so 128x128."""
    return picture.resize((128, 128), Image.Resampling.BICUBIC) if picture.width == 64 else picture


def patches(picture: Image.Image) -> np.ndarray:
    """The image processor's output for one picture: [patches, 3 * 2 * 16 * 16]."""
    pixels = (np.asarray(enlarge(picture), dtype=np.float32) / 255 - 0.5) / 0.5
    high, wide = pixels.shape[0] // CELL, pixels.shape[1] // CELL
    split = pixels.reshape(high, MERGE, PATCH, wide, MERGE, PATCH, 3)
    ordered = split.transpose(0, 3, 1, 4, 6, 2, 5)[:, :, :, :, :, None]
    return np.repeat(ordered, 2, axis=5).reshape(high * wide * MERGE**2, -1)


def grid(picture: Image.Image) -> tuple[int, int, int]:
    """The picture's patches: frames, rows, columns."""
    zoom = 2 if picture.width == 64 else 1
    return 1, zoom * picture.height // PATCH, zoom * picture.width // PATCH


def cells(picture: Image.Image) -> int:
    """How many image tokens the picture takes."""
    _, high, wide = grid(picture)
    return high * wide // MERGE**2


def easy_vqa_kind(answer: str) -> str:
    if answer in ("yes", "no"):
        return "yesno"
    return "shape" if answer in tasks.SHAPES else "color"


@cache
def easy_vqa_rows(split: str) -> list[tuple[str, list[Question]]]:
    """The paths of easy-VQA's real pictures, each with its questions."""
    paths = getattr(easy_vqa, f"get_{split}_image_paths")()
    rows = defaultdict(list)
    questions = getattr(easy_vqa, f"get_{split}_questions")()
    for text, answer, number in zip(*questions, strict=True):
        rows[number].append(Question(easy_vqa_kind(answer), text, answer))
    return [(paths[number], rows[number]) for number in sorted(rows)]


def row_real(rng: Random) -> Row:
    path, questions = rng.choice(easy_vqa_rows("train"))
    # Yes and no are three of four questions there; here the others come as often.
    open_ended = [question for question in questions if question.kind != "yesno"]
    yes_no = [question for question in questions if question.kind == "yesno"]
    rng.shuffle(yes_no)
    picture = Image.open(path).convert("RGB")
    return Row([picture], open_ended + yes_no, [])


def row_one(rng: Random) -> Row:
    size = (64, 64) if rng.random() < 0.7 else rng.choice(tasks.SIZES)
    scene = tasks.one_shape(rng, size)
    questions = [tasks.ask_one(rng, scene) for _ in range(QUESTIONS)]
    return Row([scene.picture()], questions, [scene])


def row_many(rng: Random) -> Row:
    size = (128, 128) if rng.random() < 0.5 else rng.choice(tasks.SIZES)
    scene = tasks.many_shapes(rng, size)
    return Row([scene.picture()], [tasks.ask_many(rng, scene) for _ in range(QUESTIONS)], [scene])


def row_number(rng: Random, held_out: bool = False) -> Row:
    size = (128, 128) if rng.random() < 0.5 else rng.choice(tasks.SIZES)
    scene = tasks.number_scene(rng, size, held_out)
    return Row([scene.picture()], [tasks.ask_number(rng, scene) for _ in range(QUESTIONS)], [scene])


def row_two(rng: Random) -> Row:
    sizes = tuple((64, 64) if rng.random() < 0.6 else rng.choice(tasks.SIZES[:5]) for _ in range(2))
    scenes = tasks.two_scenes(rng, sizes)
    pictures = [scene.picture() for scene in scenes]
    return Row(pictures, [tasks.ask_two(rng, *scenes) for _ in range(QUESTIONS)], list(scenes))


def row_chat(rng: Random) -> Row:
    return Row([], [Question("chat", *rng.choice(tasks.CHAT))], [])


def random_row(rng: Random) -> Row:
    """The mixture that training draws from."""
    makers = (row_real, row_one, row_many, row_number, row_two, row_chat)
    return rng.choices(makers, weights=(8, 5, 48, 15, 22, 2))[0](rng)


def pixel_values(rows: list[Row]) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """pixel_values and image_grid_thw of all pictures, as the image processor gives them."""
    pictures = [picture for row in rows for picture in row.pictures]
    if not pictures:
        return None, None
    values = torch.from_numpy(np.concatenate([patches(picture) for picture in pictures]))
    return values, torch.tensor([grid(picture) for picture in pictures])


def drawn_tokens(rows: list[Row]) -> torch.Tensor:
    counts = [(bool(row.scenes), cells(picture)) for row in rows for picture in row.pictures]
    return torch.tensor([known for known, count in counts for _ in range(count)], dtype=torch.bool)


class Packer:
    """Turns rows into batches."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.pad = tokenizer.token_to_id("<|endoftext|>")
        self.image = tokenizer.token_to_id("<|image_pad|>")

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def prefix(self, pictures: list[Image.Image]) -> tuple[list[int], list[tuple[int, int, int]]]:
        """The tokens before the question, and the (t, h, w) position of each."""
        ids: list[int] = []
        positions: list[tuple[int, int, int]] = []
        start = 0
        shapes = iter([(high // MERGE, wide // MERGE) for _, high, wide in map(grid, pictures)])
        for token in self.encode(PREFIX + PICTURE * len(pictures)):
            if token != self.image:
                ids.append(token)
                positions.append((start,) * 3)
                start += 1
                continue
            high, wide = next(shapes)
            ids += [self.image] * (high * wide)
            positions += [(start, start + y, start + x) for y in range(high) for x in range(wide)]
            start += max(high, wide)
        return ids, positions

    def pack(self, rows: list[Row], longest: int | None = None) -> Batch:
        """Rows side by side; questions that would make a row too long are left out."""
        packed = [self.pack_row(row, longest) for row in rows]
        width = max(len(ids) for ids, *_ in packed)
        shape = (len(rows), width)
        input_ids = torch.full(shape, self.pad)
        labels = torch.full(shape, IGNORE)
        positions = torch.zeros(3, *shape, dtype=torch.long)
        segment = torch.full(shape, -1)
        question = torch.full(shape, -1)
        asked: list[Question] = []
        for number, (ids, places, targets, segments) in enumerate(packed):
            end = len(ids)
            input_ids[number, :end] = torch.tensor(ids)
            labels[number, :end] = torch.tensor(targets)
            positions[:, number, :end] = torch.tensor(places).T
            segment[number, :end] = torch.tensor(segments)
            question[number, :end] = torch.tensor(segments) - 1 + len(asked)
            asked += rows[number].questions[: max(segments)]
        pixels, grids = pixel_values(rows)
        mask, drawn = causal_mask(segment), drawn_tokens(rows)
        return Batch(input_ids, positions, mask, labels, question, asked, pixels, grids, drawn)

    def pack_row(self, row: Row, longest: int | None) -> tuple[list, list, list, list]:
        ids, positions = self.prefix(row.pictures)
        labels, segments = [IGNORE] * len(ids), [0] * len(ids)
        start = 1 + max(max(place) for place in positions)
        for number, question in enumerate(row.questions, start=1):
            ask = self.encode(ASK.format(question=question.text))
            answer = self.encode(ANSWER.format(answer=question.answer))
            if longest and len(ids) + len(ask) + len(answer) > longest:
                break
            ids += ask + answer
            # A label stands where the model predicts it: one place before its token.
            labels += [IGNORE] * (len(ask) - 1) + answer + [IGNORE]
            segments += [number] * (len(ask) + len(answer))
            positions += [(start + at,) * 3 for at in range(len(ask) + len(answer))]
        return ids, positions, labels, segments


def causal_mask(segment: torch.Tensor) -> torch.Tensor:
    """True where a token may look: back, at the prefix (segment 0) and at its own segment."""
    width = segment.shape[1]
    back = torch.ones(width, width, dtype=torch.bool).tril()
    own = segment[:, :, None] == segment[:, None, :]
    prefix = (segment == 0)[:, None, :]
    return (back & (own | prefix))[:, None]


@dataclass
class CellTargets:
    """What each image token's cell of 32x32 pixels shows; labels for the warm-up of the tower."""

    color: torch.Tensor
    shape: torch.Tensor
    center: torch.Tensor
    box: torch.Tensor
    tens: torch.Tensor
    digit: torch.Tensor


def cell_targets(scenes: list[Scene]) -> CellTargets:
    parts = zip(*map(scene_targets, scenes), strict=True)
    return CellTargets(*(torch.from_numpy(np.concatenate(part)) for part in parts))


def scene_targets(scene: Scene) -> tuple[np.ndarray, ...]:
    """Color, shape and box of the shape that fills most of a cell; digits in its two halves.

    The box comes three times: in cells from the cell's own corner, as a share of the picture, and
    as the tens of its hundredths, which is how answers write it.
    """
    zoom = 2 if scene.size[0] == 64 else 1
    wide, high = (side * zoom // CELL for side in scene.size)
    color = np.zeros((high, wide), dtype=np.int64)
    shape = np.zeros((high, wide), dtype=np.int64)
    center = np.zeros((high, wide), dtype=np.int64)
    box = np.zeros((high, wide, 8), dtype=np.float32)
    tens = np.zeros((high, wide, 4), dtype=np.int64)
    digit = np.zeros((high, wide, 2), dtype=np.int64)
    best = np.full((high, wide), 0.04)
    x0, y0 = np.arange(wide) * CELL, np.arange(high) * CELL
    for each in scene.shapes:
        left, top, right, bottom = (side * zoom for side in each.box)
        over_x = np.clip(np.minimum(right, x0 + CELL) - np.maximum(left, x0), 0, None) / CELL
        over_y = np.clip(np.minimum(bottom, y0 + CELL) - np.maximum(top, y0), 0, None) / CELL
        filled = over_y[:, None] * over_x[None, :]
        here = filled > best
        best = np.maximum(best, filled)
        color[here] = 1 + list(tasks.COLORS).index(each.color)
        shape[here] = 1 + tasks.SHAPES.index(each.kind)
        sides = np.array((left, top, right, bottom))
        corner = np.stack(np.broadcast_arrays(x0[None, :], y0[:, None]), axis=-1)
        box[here, :4] = ((sides - np.tile(corner, 2)) / CELL)[here]
        box[here, 4:] = BOX_SCALE * sides / (wide * CELL, high * CELL, wide * CELL, high * CELL)
        tens[here] = np.array(tasks.hundredths(scene.size, each.box)) // 10
        x, y = each.center
        center[int(y * zoom // CELL), int(x * zoom // CELL)] = 1
    for text, (left, top, right, bottom) in scene.digits:
        half = int((left + right) / 2 // (CELL // 2))
        digit[int((top + bottom) / 2 // CELL), half // 2, half % 2] = 1 + int(text)
    flat = (color.reshape(-1), shape.reshape(-1), center.reshape(-1), box.reshape(-1, 8))
    return *flat, tens.reshape(-1, 4), digit.reshape(-1, 2)


def drawn_rows(rng: Random, count: int) -> Iterator[Row]:
    """Rows whose pictures we drew, for the warm-up."""
    makers = (row_one, row_many, row_number)
    for _ in range(count):
        yield rng.choices(makers, weights=(30, 40, 30))[0](rng)
