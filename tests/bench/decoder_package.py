"""Greedy tokens of packages that `apply --recipe decoder` made, beside those of the source graph.

    python tests/bench/decoder_package.py SOURCE.onnx PACKAGE ... [--tokens 64] [--text FILE]

The source graph runs in onnxruntime, its cache fed back; the packages run in onnxruntime-genai. A
package's own choice is compared freely, each after its own tokens, and forced, each after those of
the source graph. With `--text` each package also reads rows of that text token by token, and the
divergence of its logits from the source graph's, and both perplexities, are printed.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import onnxruntime_genai as og

LENGTH = 256
"""Tokens of a row of text."""
QUESTIONS = (
    "What is the capital of France?",
    "Write one sentence about the sea.",
    "List three colours.",
    "What is 2 + 2?",
    "Explain why the sky is blue.",
    "Write a short poem about a cat.",
    "How do I boil an egg?",
    "Tell me about the history of Rome.",
)


def main() -> None:
    """Print a table."""
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    p.add_argument("source", type=Path)
    p.add_argument("packages", type=Path, nargs="+")
    p.add_argument("--tokens", type=int, default=64)
    p.add_argument("--text", type=Path, help="a text file to read")
    p.add_argument("--rows", type=int, default=8, help="of 256 tokens that are read of it")
    args = p.parse_args()
    prompts = [prompt(args.packages[0], question) for question in QUESTIONS]
    start = time.perf_counter()
    config = json.loads((args.packages[0] / "genai_config.json").read_text(encoding="utf-8"))
    stops = config["model"]["eos_token_id"]
    wanted = greedy(args.source, prompts, args.tokens, stops)
    rate = sum(map(len, wanted)) / (time.perf_counter() - start)
    print(f"{args.source}: {sum(map(len, wanted))} tokens, {rate:.1f} a second")
    spoken = [w[:-1] if w[-1] in stops else w for w in wanted]  # the runtime leaves the end out
    for package in args.packages:
        model = og.Model(str(package))
        start = time.perf_counter()
        free = [answer(model, p, args.tokens) for p in prompts]
        rate = sum(map(len, free)) / (time.perf_counter() - start)
        whole = sum(list(f) == list(s) for f, s in zip(free, spoken, strict=True))
        forced = [follow(model, p, w) for p, w in zip(prompts, wanted, strict=True)]
        equal = sum(int((f == w).sum()) for f, w in zip(forced, wanted, strict=True))
        print(
            f"{package}: {whole} of {len(prompts)} answers equal; {equal} of "
            f"{sum(map(len, wanted))} tokens equal after the source graph's; {rate:.1f} a second"
        )

    if args.text:
        read(args.source, args.packages, args.text, args.rows)


def read(source: Path, packages: list[Path], text: Path, rows: int) -> None:
    """Print divergence, perplexities and agreement on rows of a text."""
    tokenizer = og.Tokenizer(og.Model(str(packages[0])))
    every = np.array(tokenizer.encode(text.read_text(encoding="utf-8", errors="replace")[:400_000]))
    if (every < 0).any():
        raise SystemExit(f"{packages[0]}: the runtime reads its tokenizer.json another way")
    ids = every[: len(every) // LENGTH * LENGTH].reshape(-1, LENGTH)
    ids = ids[np.linspace(0, len(ids) - 1, rows).astype(int)]
    session = ort.InferenceSession(source, providers=["CPUExecutionProvider"])
    exact = [log_softmax(whole(session, row)) for row in ids]
    print(
        f"{ids.size} tokens of {text.name}; source graph: perplexity {perplexity(exact, ids):.3f}"
    )
    for package in packages:
        model = og.Model(str(package))
        found = [log_softmax(stepwise(model, row)) for row in ids]
        pairs = list(zip(exact, found, strict=True))
        kl = np.mean([(np.exp(p) * (p - q)).sum(-1).mean() for p, q in pairs])
        same = np.mean([(p.argmax(-1) == q.argmax(-1)).mean() for p, q in pairs])
        print(
            f"{package}: KL {kl:.4f}, perplexity {perplexity(found, ids):.3f}, "
            f"likeliest token equal {same:.1%}"
        )


def whole(session: ort.InferenceSession, row: np.ndarray) -> np.ndarray:
    """Logits [S, V] of a row by the source graph, without a cache."""
    feeds: dict[str, Any] = {
        "input_ids": row[None].astype(np.int64),
        "attention_mask": np.ones((1, len(row)), np.int64),
        "position_ids": np.arange(len(row))[None],
    }
    taken = session.get_inputs()
    feeds = {x.name: feeds[x.name] for x in taken if x.name in feeds} | {
        x.name: np.zeros((1, x.shape[1], 0, x.shape[3]), np.float32)
        for x in taken
        if len(x.shape) == 4
    }
    return np.asarray(session.run(["logits"], feeds)[0][0], np.float32)


def stepwise(model: Any, row: np.ndarray) -> np.ndarray:
    """Logits [S, V] of a row by a package, one token after the other."""
    params = og.GeneratorParams(model)
    params.set_search_options(max_length=len(row) + 1, do_sample=False)
    made, rows = og.Generator(model, params), []
    for token in row:
        made.append_tokens(np.array([[token]], np.int32))
        rows.append(np.array(made.get_logits()[0, -1], np.float32))
    return np.stack(rows)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Logarithms of probabilities, in float64."""
    wide = logits.astype(np.float64)
    wide -= wide.max(-1, keepdims=True)
    return np.asarray(wide - np.log(np.exp(wide).sum(-1, keepdims=True)))


def perplexity(logs: list[np.ndarray], ids: np.ndarray) -> float:
    """Of each token behind the first of its row."""
    surprise = [-log[np.arange(LENGTH - 1), row[1:]] for log, row in zip(logs, ids, strict=True)]
    return float(np.exp(np.mean(surprise)))


def prompt(package: Path, question: str) -> np.ndarray:
    """A question as tokens, by the chat template."""
    tokenizer = og.Tokenizer(og.Model(str(package)))
    messages = json.dumps([{"role": "user", "content": question}])
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    return np.array(tokenizer.encode(text))


def greedy(path: Path, prompts: list[np.ndarray], most: int, ends: list[int]) -> list[np.ndarray]:
    """The likeliest token each time, by the graph itself, up to one of the ends."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(path, options, ["CPUExecutionProvider"])
    pasts = [x for x in session.get_inputs() if len(x.shape) == 4]
    taken = {x.name for x in session.get_inputs()}
    found = []
    for start in prompts:
        past = [np.zeros((1, x.shape[1], 0, x.shape[3]), np.float32) for x in pasts]
        tokens, said = start[None].astype(np.int64), []
        for _ in range(most):
            before = past[0].shape[2]
            end = before + tokens.shape[1]
            feeds: dict[str, Any] = {
                "input_ids": tokens,
                "attention_mask": np.ones((1, end), np.int64),
                "position_ids": np.arange(before, end)[None],
            }
            feeds = {name: array for name, array in feeds.items() if name in taken}
            feeds |= {x.name: array for x, array in zip(pasts, past, strict=True)}
            logits, *past = session.run(None, feeds)
            said.append(int(logits[0, -1].argmax()))
            tokens = np.array([[said[-1]]])
            if said[-1] in ends:
                break
        found.append(np.array(said))
    return found


def generator(model: Any, start: np.ndarray, most: int) -> Any:
    """A run behind a prompt."""
    params = og.GeneratorParams(model)
    params.set_search_options(max_length=len(start) + most, do_sample=False)
    made = og.Generator(model, params)
    made.append_tokens(start[None].astype(np.int32))
    return made


def answer(model: Any, start: np.ndarray, most: int) -> np.ndarray:
    """What the package says."""
    made = generator(model, start, most)
    while not made.is_done():
        made.generate_next_token()
    return np.array(made.get_sequence(0))[len(start) :]


def follow(model: Any, start: np.ndarray, said: np.ndarray) -> np.ndarray:
    """The package's likeliest token after each beginning of an answer."""
    made = generator(model, start, len(said))
    found = []
    for token in said:
        found.append(int(made.get_logits()[0, -1].argmax()))
        made.append_tokens(np.array([[token]], np.int32))
    return np.array(found)


if __name__ == "__main__":
    main()
