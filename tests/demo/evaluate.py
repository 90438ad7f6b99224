"""How often the model is right, by kind of question, and what it loses when a part is taken away.

    python -m tests.demo.evaluate export_min/demo

An answer counts as right when greedy decoding would give it word for word, end of turn included.
That is read off one forward pass: decoding follows the expected answer exactly as long as the
largest logit at each place is the expected token.
"""

import argparse
from collections import Counter, defaultdict
from pathlib import Path
from random import Random
from statistics import mean
from typing import NamedTuple

import torch
from PIL import Image
from tokenizers import Tokenizer
from torch.nn import functional
from transformers import Qwen3VLForConditionalGeneration

from tests.demo import batches, tasks
from tests.demo.batches import Batch, Packer, Row
from tests.demo.tasks import Question

ABLATIONS = ("deepstack off", "flat positions", "pictures swapped")
SEED = 20260


class Verdict(NamedTuple):
    """How the model did on one question."""

    question: Question
    right: bool
    loss: float


def hidden_states(model: Qwen3VLForConditionalGeneration, batch: Batch, vision) -> torch.Tensor:
    return model.model(
        input_ids=batch.input_ids,
        attention_mask=batch.mask,
        position_ids=batch.positions,
        mm_encoder_outputs={"image": vision},
    ).last_hidden_state


def answer_loss(model: Qwen3VLForConditionalGeneration, batch: Batch, vision) -> torch.Tensor:
    """Cross entropy of the answers; every answer weighs the same, however long it is."""
    return answer_losses(model, batch, vision)[0].mean()


def answer_losses(
    model: Qwen3VLForConditionalGeneration, batch: Batch, vision
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each question, the mean loss of the answer's tokens and how many tokens were wrong."""
    answered = batch.labels != batches.IGNORE
    logits = model.lm_head(hidden_states(model, batch, vision)[answered])
    labels, question = batch.labels[answered], batch.question[answered]
    losses = functional.cross_entropy(logits, labels, reduction="none")
    mistakes = (logits.argmax(-1) != labels).float()
    none = torch.zeros(len(batch.questions))
    lengths = none.index_add(0, question, torch.ones_like(losses))
    return none.index_add(0, question, losses) / lengths, none.index_add(0, question, mistakes)


def ablate(batch: Batch, vision, ablation: str) -> None:
    """Takes one part away, in place."""
    if ablation == "deepstack off":
        vision.deepstack_features = [
            [torch.zeros_like(part) for part in level] for level in vision.deepstack_features
        ]
    elif ablation == "flat positions":
        batch.positions[:] = batch.mask[:, 0].sum(-1) - 1  # how many tokens are seen before
    elif ablation == "pictures swapped":
        levels = [vision.pooler_output, *vision.deepstack_features]
        vision.pooler_output, *vision.deepstack_features = [shift(level) for level in levels]


def shift(level: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Hands every picture the features of the picture before it, whatever their sizes."""
    sizes = [len(part) for part in level]
    return torch.cat(level).roll(sizes[-1], 0).split(sizes)


@torch.no_grad()
def right_answers(
    model: Qwen3VLForConditionalGeneration, packer: Packer, rows: list[Row], ablation: str = ""
) -> list[Verdict]:
    """The verdict on each question of the rows."""
    batch = packer.pack(rows)
    vision = None
    if batch.pixels is not None:
        vision = model.model.get_image_features(batch.pixels, batch.grids, return_dict=True)
        ablate(batch, vision, ablation)
    loss, mistakes = answer_losses(model, batch, vision)
    return [
        Verdict(asked, mistakes[at].item() == 0, loss[at].item())
        for at, asked in enumerate(batch.questions)
    ]


@torch.no_grad()
def reply(
    model: Qwen3VLForConditionalGeneration,
    packer: Packer,
    pictures: list[Image.Image],
    question: str,
) -> str:
    """What the model says, decoded greedily by Hugging Face's own loop."""
    ids, _ = packer.prefix(pictures)
    ids += packer.encode(batches.ASK.format(question=question))
    inputs = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids))}
    if pictures:
        pixels, grids = batches.pixel_values([Row(pictures, [], [])])
        kinds = (inputs["input_ids"] == packer.image).int()
        inputs |= {"pixel_values": pixels, "image_grid_thw": grids, "mm_token_type_ids": kinds}
    output = model.generate(**inputs, max_new_tokens=64, do_sample=False)
    return packer.tokenizer.decode(output[0, len(ids) :].tolist())


def easy_vqa_test(limit: int | None = None) -> list[Row]:
    """The real held-out pictures with all their questions."""
    return [
        Row([Image.open(path).convert("RGB")], questions, [])
        for path, questions in batches.easy_vqa_rows("test")[:limit]
    ]


def own_test(count: int = 300) -> list[Row]:
    """Pictures of our own tasks from a seed that training never used; numbers it never showed."""
    rng = Random(SEED)
    rows = [batches.row_many(rng) for _ in range(count)]
    rows += [batches.row_number(rng, held_out=True) for _ in range(count)]
    rows += [batches.row_two(rng) for _ in range(count)]
    return rows


def chat_test() -> list[Row]:
    return [Row([], [Question("chat", *pair)], []) for pair in tasks.CHAT]


def verdicts(
    model: Qwen3VLForConditionalGeneration, packer: Packer, rows: list[Row], ablation: str = ""
) -> list[Verdict]:
    chunks = [rows[at : at + 25] for at in range(0, len(rows), 25)]
    return [each for chunk in chunks for each in right_answers(model, packer, chunk, ablation)]


def majority(answers: list[str]) -> float:
    """How often the commonest answer is right."""
    return Counter(answers).most_common(1)[0][1] / len(answers)


def overlap(a: str, b: str) -> float:
    """Intersection over union of two boxes as the model writes them; 0 for what is no box."""
    try:
        (x0, y0, x1, y1), (u0, v0, u1, v1) = ([int(side) for side in box.split()] for box in (a, b))
    except ValueError:
        return 0.0
    shared = max(0, min(x1, u1) - max(x0, u0)) * max(0, min(y1, v1) - max(y0, v0))
    union = (x1 - x0) * (y1 - y0) + (u1 - u0) * (v1 - v0) - shared
    return shared / max(union, 1)


def box_overlaps(
    model: Qwen3VLForConditionalGeneration, packer: Packer, rows: list[Row]
) -> list[float]:
    return [
        overlap(reply(model, packer, row.pictures, question.text), question.answer)
        for row in rows
        for question in row.questions
        if question.kind == "box"
    ]


def report(model: Qwen3VLForConditionalGeneration, packer: Packer, rows: list[Row]) -> None:
    """Prints a table: a line a kind, a column an ablation."""
    columns = {name: defaultdict(list) for name in ("", *ABLATIONS)}
    for name, column in columns.items():
        for verdict in verdicts(model, packer, rows, name):
            column[verdict.question.kind].append(verdict)
    print(f"{'kind':10}{'count':>7}{'majority':>10}{'right':>8}{'loss':>8}", end="")
    print("".join(f"{name:>26}" for name in ABLATIONS))
    for kind, whole in columns[""].items():
        most = majority([verdict.question.answer for verdict in whole])
        print(f"{kind:10}{len(whole):7}{most:10.1%}", end="")
        for name, column in columns.items():
            right = mean(verdict.right for verdict in column[kind])
            loss = mean(verdict.loss for verdict in column[kind])
            print(f"{right:{18 if name else 8}.1%}{loss:8.3f}", end="")
        print(flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--pictures", type=int, help="of easy-VQA's 1000 held-out ones, the first")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    packer = Packer(Tokenizer.from_file(str(args.checkpoint / "tokenizer.json")))
    model = Qwen3VLForConditionalGeneration.from_pretrained(args.checkpoint, dtype=torch.float32)
    rows = own_test()
    report(model.eval(), packer, easy_vqa_test(args.pictures) + rows + chat_test())
    overlaps = box_overlaps(model, packer, rows[:100])
    close = mean(value >= 0.5 for value in overlaps)
    print(f"boxes: mean IoU {mean(overlaps):.3f}, IoU >= 0.5 for {close:.1%} of {len(overlaps)}")


if __name__ == "__main__":
    main()
