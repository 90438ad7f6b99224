"""A language model in PyTorch, float32, of any family that transformers knows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from transformers import AutoModelForCausalLM, AutoTokenizer

from export_min.checkpoint import Checkpoint
from export_min.reference import Reference
from export_min.trace import quiet
from surgery.base.errors import CheckpointError, UserError, first_line


class TextReference(Reference):
    """The Hugging Face pipeline of text: tokenizer and `AutoModelForCausalLM`."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Load a checkpoint. Code in it is not run.

        Raises:
            CheckpointError: it cannot be used; transformers would fill in a missing weight.
        """
        checkpoint.check_tokenizer(pictures=False)
        self.source = checkpoint.source
        try:
            with quiet():
                self.model, about = AutoModelForCausalLM.from_pretrained(
                    checkpoint.path,
                    dtype=torch.float32,
                    use_safetensors=True,
                    output_loading_info=True,
                )
                self.tokenizer = AutoTokenizer.from_pretrained(checkpoint.path)
        except Exception as e:  # whatever transformers raises at a configuration or a weight
            raise CheckpointError(
                f"{self.source}: transformers cannot load it: {first_line(e)}"
            ) from e
        lost = sorted(about["missing_keys"])
        if lost:
            raise CheckpointError(
                f"{self.source}: {len(lost)} weights are missing, such as {lost[0]}."
            )
        self.model.eval()
        self.settle()

    def chat(self, text: str, pictures: int = 0) -> str:
        """A user turn as the chat template writes it; the text itself where there is none.

        Raises:
            CheckpointError: the template fails, or does not come to an end.
        """
        return super().chat(text, pictures) if self.tokenizer.chat_template else text

    def inputs(self, prompt: str, images: Sequence[Image.Image] = ()) -> dict[str, torch.Tensor]:
        """What the model takes for a prompt.

        Raises:
            UserError: it comes with pictures.
        """
        if images:
            raise UserError(f"{self.source}: a language model takes no pictures.")
        encoded = self.tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
        return {"input_ids": encoded["input_ids"], "attention_mask": encoded["attention_mask"]}

    def forget(self) -> None:
        """Nothing is kept of an earlier prompt."""
