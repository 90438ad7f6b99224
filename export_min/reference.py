"""A checkpoint in PyTorch, float32, as the reference that every package is compared with."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoTokenizer, GenerationConfig
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from export_min import families
from export_min.checkpoint import Checkpoint
from export_min.trace import checked_weights, load_config, quiet
from surgery.base.errors import CheckpointError, UserError, first_line
from surgery.base.prompts import IMAGE, IMAGE_PAD, turn

TEMPLATE_SECONDS = 20.0
"""Time for a chat template to write one conversation; real ones take milliseconds."""


@dataclass(frozen=True)
class Answer:
    """A greedy continuation of one prompt."""

    tokens: list[int]
    logits: np.ndarray
    """`[steps, V]` float32: the row that chose each token."""


class Reference:
    """The Hugging Face pipeline: tokenizer, image processor, model."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Load a checkpoint.

        Raises:
            CheckpointError: it cannot be used; transformers would fill in a missing weight.
        """
        checkpoint.check_tokenizer()
        self.source = checkpoint.source
        family = families.load(checkpoint.model_type)
        config = load_config(checkpoint, family)
        checked_weights(checkpoint, family, config)
        with quiet():
            self.model = family.model.from_pretrained(
                checkpoint.path, config=config, dtype=torch.float32, use_safetensors=True
            ).eval()
            self.tokenizer = AutoTokenizer.from_pretrained(checkpoint.path)
            self.images = Qwen2VLImageProcessorPil.from_pretrained(checkpoint.path)
        self.settle()

    def settle(self) -> None:
        """Take over configuration and end tokens of the model that was loaded."""
        self.config = self.model.config
        self.ends = self.model.generation_config.eos_token_id
        # Without its own settings, sampling and end tokens apply only where `generate` asks.
        pad = self.model.generation_config.pad_token_id
        self.model.generation_config = GenerationConfig(pad_token_id=pad)

    def chat(self, text: str, pictures: int = 0) -> str:
        """A user turn as the checkpoint's chat template writes it, pictures first.

        Raises:
            UserError: the text itself holds a mark of a picture.
            CheckpointError: the template fails, or does not come to an end.
        """
        message = [{"role": "user", "content": turn(text, IMAGE * pictures)}]
        done: queue.SimpleQueue[str | Exception] = queue.SimpleQueue()

        def render() -> None:  # jinja's sandbox, which transformers uses, does not bound loops
            try:
                done.put(
                    self.tokenizer.apply_chat_template(
                        message, tokenize=False, add_generation_prompt=True
                    )
                )
            except Exception as e:  # whatever a template raises
                done.put(e)

        threading.Thread(target=render, daemon=True).start()
        try:
            found = done.get(timeout=TEMPLATE_SECONDS)
        except queue.Empty:
            raise CheckpointError(
                f"{self.source}: chat template: not done after {TEMPLATE_SECONDS:g} s. "
                f"Does it loop?"
            ) from None
        if isinstance(found, Exception):
            raise CheckpointError(f"{self.source}: chat template: {first_line(found)}") from found
        return found

    def inputs(self, prompt: str, images: Sequence[Image.Image] = ()) -> dict[str, torch.Tensor]:
        """What the model takes for a prompt that marks the place of each picture, in order.

        Raises:
            UserError: the prompt marks more or fewer places than there are pictures.
        """
        features: dict[str, Any] = {}
        if images:
            features = dict(self.images(images=list(images), return_tensors="pt"))
            merge = self.config.vision_config.spatial_merge_size**2
            parts = prompt.split(IMAGE_PAD)
            counts = [int(grid.prod()) // merge for grid in features["image_grid_thw"]]
            if len(parts) != len(counts) + 1:
                raise UserError(
                    f"the prompt holds {IMAGE_PAD} {len(parts) - 1} times, needs it once for each "
                    f"of {len(counts)} pictures."
                )
            pads = [IMAGE_PAD * count for count in counts]
            prompt = parts[0] + "".join(a + b for a, b in zip(pads, parts[1:], strict=True))
        encoded = self.tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
        ids = encoded["input_ids"]
        kinds = (ids == self.config.image_token_id).int()
        return {
            "input_ids": ids,
            "attention_mask": encoded["attention_mask"],
            "mm_token_type_ids": kinds,
            **features,
        }

    def forget(self) -> None:
        """Drop what the model keeps of an earlier prompt."""
        self.model.model.rope_deltas = None

    def generate(self, inputs: dict[str, torch.Tensor], steps: int, stop: bool = True) -> Answer:
        """Greedy decoding.

        Args:
            inputs: from `inputs`.
            steps: most tokens to make.
            stop: end at an end-of-sequence token.
        """
        self.forget()
        with torch.no_grad(), quiet():
            out = self.model.generate(
                **inputs,
                max_new_tokens=steps,
                do_sample=False,
                eos_token_id=self.ends if stop else None,
                return_dict_in_generate=True,
                output_logits=True,
            )
        tokens = out.sequences[0, inputs["input_ids"].shape[1] :].tolist()
        logits = torch.cat([row.float() for row in out.logits]).numpy()
        return Answer(tokens, logits)

    def weight(self, name: str) -> np.ndarray:
        """A parameter in float32, by name.

        Raises:
            CheckpointError: the model has no such parameter.
        """
        own = dict(self.model.named_parameters(remove_duplicate=False))
        if name not in own:
            raise CheckpointError(
                f"{self.source}: has no weight {name}. Is it the checkpoint that the package was "
                f"made from?"
            )
        found: np.ndarray = own[name].detach().float().numpy()
        return found

    def replace(self, weights: Iterable[tuple[str, np.ndarray]]) -> None:
        """Compute with other weights, by parameter name; a tied head gets one of its own.

        Raises:
            CheckpointError: the model has no such weight, or one of another shape.
        """
        own = dict(self.model.named_parameters(remove_duplicate=False))
        for name, array in weights:
            shape = list(own[name].shape) if name in own else None
            if shape != list(array.shape):
                found = "has none" if shape is None else f"has {shape}"
                raise CheckpointError(
                    f"{self.source}: {name} of shape {list(array.shape)} cannot replace a weight: "
                    f"the checkpoint {found} of that name. Is it the checkpoint that the package "
                    f"was made from?"
                )
            weight = torch.from_numpy(array)
            if name == "lm_head.weight":
                self.model.lm_head.weight = torch.nn.Parameter(weight)
            else:
                own[name].data.copy_(weight)

    def text(self, tokens: Sequence[int]) -> str:
        """Tokens as text, special ones left out."""
        result: str = self.tokenizer.decode(list(tokens), skip_special_tokens=True)
        return result
