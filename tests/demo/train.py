"""Trains the demo checkpoint from nothing, on a CPU.

    python -m tests.demo.train --work WORK --out export_min/demo

Two stages, both with fixed seeds:

    1. The vision tower alone. A linear head, dropped afterwards, reads what an image token brings
       to the decoder (the merged features and the DeepStack levels, summed) and names color,
       shape, box and digits of the token's cell of the picture.
    2. The whole model on chats about pictures (see batches.py), loss on the answers only; the head
       stays on as a second loss.

State is saved to WORK every hundred steps; the same command goes on from there.
"""

import argparse
import time
from functools import partial
from pathlib import Path
from random import Random

import torch
from torch import nn
from torch.nn import functional

from tests.demo import batches, checkpoint, evaluate, tasks, tokens
from tests.demo.batches import CellTargets, Packer

DECAY = 0.4  # the last part of a stage, in which the learning rate falls to nothing
CELL_WEIGHT = 0.5  # of the head's loss in stage 2
ROW_TOKENS = 144  # questions that would make a row longer are left out
SAVE_EVERY, PRINT_EVERY = 100, 50


class CellHead(nn.Module):
    """Names what each image token's cell shows: the training wheels of the vision tower."""

    def __init__(self, width: int):
        super().__init__()
        self.parts = (1 + len(tasks.COLORS), 1 + len(tasks.SHAPES), 8, 2 * 11, 2, 4 * 10)
        self.linear = nn.Linear(width, sum(self.parts))
        # Most cells show no digit; those that do would hardly count.
        self.digit_weights = torch.tensor([0.05] + 10 * [1.0])

    def loss(self, features: list[torch.Tensor], target: CellTargets) -> torch.Tensor:
        return sum(self.loss_of(each, target) for each in features) / len(features)

    def loss_of(self, features: torch.Tensor, target: CellTargets) -> torch.Tensor:
        color, shape, box, digit, center, tens = self.linear(features).split(self.parts, dim=-1)
        there = target.shape > 0
        return (
            functional.cross_entropy(color, target.color)
            + functional.cross_entropy(shape, target.shape)
            + functional.cross_entropy(center, target.center)
            + functional.cross_entropy(tens[there].reshape(-1, 10), target.tens[there].reshape(-1))
            + functional.smooth_l1_loss(box[there], target.box[there], beta=0.1)
            + functional.cross_entropy(
                digit.reshape(-1, 11), target.digit.reshape(-1), weight=self.digit_weights
            )
        )


def early_and_late(vision) -> tuple[torch.Tensor, torch.Tensor]:
    """What an image token brings to the decoder by its second layer, and in all."""
    levels = [vision.pooler_output, *vision.deepstack_features]
    joined = [torch.cat(level) if isinstance(level, tuple) else level for level in levels]
    return sum(joined[:2]), sum(joined)


def initialise(model: nn.Module) -> None:
    """Weights scaled by fan-in: the published 0.02 suits wider models than this one."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv3d) and name != "lm_head":
            nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
    # Places must be heard beside the pixels, whose projections are of the order of one.
    nn.init.normal_(model.model.visual.pos_embed.weight, std=0.5)


def patch_product(embed: nn.Module, patches: torch.Tensor) -> torch.Tensor:
    """Qwen3VLVisionPatchEmbed.forward, three times as fast on a CPU: its stride is its kernel."""
    weight = embed.proj.weight
    return functional.linear(patches, weight.flatten(1), embed.proj.bias)


def learning_rate(step: int, steps: int, peak: float, warmup: int = 100) -> float:
    """Warm-up, plateau, linear decay."""
    return peak * min(1.0, (step + 1) / warmup, (steps - step) / (DECAY * steps))


class Trainer:
    """The model, the head, the optimizer and where they stand; resumable."""

    def __init__(self, work: Path, batch: int, peak: float):
        self.packer = Packer(tokens.build())
        self.model = checkpoint.fresh_model(self.packer.tokenizer)
        initialise(self.model)
        embed = self.model.model.visual.patch_embed
        embed.forward = partial(patch_product, embed)
        self.head = CellHead(checkpoint.TEXT["hidden_size"])
        self.batch, self.peak, self.path = batch, peak, work / "state.pt"
        self.stage, self.step = 1, 0
        self.start_optimizer()
        if self.path.exists():
            self.load()

    def parameters(self) -> list[nn.Parameter]:
        return [*self.model.parameters(), *self.head.parameters()]

    def start_optimizer(self) -> None:
        matrices = [p for p in self.parameters() if p.ndim > 1]
        vectors = [p for p in self.parameters() if p.ndim <= 1]
        groups = [
            {"params": matrices, "weight_decay": 0.02},
            {"params": vectors, "weight_decay": 0},
        ]
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98))

    def save(self) -> None:
        state = {name: getattr(self, name).state_dict() for name in ("model", "head", "optimizer")}
        unfinished = self.path.with_suffix(".unfinished")
        torch.save(state | {"stage": self.stage, "step": self.step}, unfinished)
        unfinished.replace(self.path)

    def load(self) -> None:
        state = torch.load(self.path)
        for name in ("model", "head", "optimizer"):
            getattr(self, name).load_state_dict(state[name])
        self.stage, self.step = state["stage"], state["step"]

    def tower_loss(self, rng: Random) -> torch.Tensor:
        rows = list(batches.drawn_rows(rng, self.batch))
        pixels, grids = batches.pixel_values(rows)
        vision = self.model.model.visual(pixels, grid_thw=grids, return_dict=True)
        targets = batches.cell_targets([scene for row in rows for scene in row.scenes])
        return self.head.loss(early_and_late(vision), targets)

    def chat_loss(self, rng: Random) -> torch.Tensor:
        rows = [batches.random_row(rng) for _ in range(self.batch)]
        batch = self.packer.pack(rows, ROW_TOKENS)
        vision = self.model.model.get_image_features(batch.pixels, batch.grids, return_dict=True)
        answers = evaluate.answer_loss(self.model, batch, vision)
        targets = batches.cell_targets([scene for row in rows for scene in row.scenes])
        features = [level[batch.drawn] for level in early_and_late(vision)]
        return answers + CELL_WEIGHT * self.head.loss(features, targets)

    def update(self, loss: torch.Tensor, steps: int) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, steps, self.peak)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1

    def run(self, stage: int, steps: int) -> None:
        """Runs a stage to its end, from wherever it stands."""
        if self.stage < stage:
            self.stage, self.step = stage, 0
            self.start_optimizer()
        loss_of = self.tower_loss if stage == 1 else self.chat_loss
        started, total = time.time(), 0.0
        while self.stage == stage and self.step < steps:
            loss = loss_of(Random(f"{stage}/{self.step}"))
            self.update(loss, steps)
            total += loss.item()
            if self.step % PRINT_EVERY == 0:
                seconds = time.time() - started
                print(
                    f"{stage} {self.step:6} loss {total / PRINT_EVERY:.4f} {seconds:6.0f} s",
                    flush=True,
                )
                total = 0.0
            if self.step % SAVE_EVERY == 0 or self.step == steps:
                self.save()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for the training state")
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoint")
    parser.add_argument(
        "--chat-template", type=Path, default=Path("export_min/demo/chat_template.jinja")
    )
    parser.add_argument("--tower-steps", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=7000)
    parser.add_argument("--batch", type=int, default=16, help="rows a step")
    parser.add_argument("--rate", type=float, default=1e-3, help="peak learning rate")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(args.work, args.batch, args.rate)
    trainer.run(1, args.tower_steps)
    trainer.run(2, args.steps)
    checkpoint.save_files(trainer.packer.tokenizer, args.out, args.chat_template)
    checkpoint.save_weights(trainer.model, args.out)


if __name__ == "__main__":
    main()
