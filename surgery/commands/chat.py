"""Ask a package a question, or hold a conversation with it.

In a conversation a line is a turn; "/image PATH" adds a picture to the next one, "/new" forgets
everything, "/quit" or the end of the input leaves. Ctrl-C ends an answer early.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from typing import TYPE_CHECKING

from surgery.base.console import complain, console
from surgery.base.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

    from surgery.answer.conversation import Conversation

HELP = (
    "a line is a turn; /image PATH adds a picture to the next one, /new starts anew, /quit leaves"
)


def configure(p: argparse.ArgumentParser) -> None:
    """The package, the question, how to answer."""
    p.add_argument("package", metavar="DIR", help="a package")
    p.add_argument("prompt", metavar="PROMPT", nargs="?", help="default: a conversation")
    p.add_argument(
        "--image",
        metavar="PATH",
        action="append",
        default=[],
        help="a picture in any format Pillow reads; repeat for more",
    )
    p.add_argument(
        "--temperature",
        type=float,
        metavar="T",
        help="0 for the likeliest token always (default: as the package says)",
    )
    p.add_argument("--top-k", "--top_k", type=int, metavar="K", help="among the K likeliest")
    p.add_argument(
        "--top-p", "--top_p", type=float, metavar="P", help="among those that reach probability P"
    )
    p.add_argument("--seed", type=int, metavar="N", help="repeat a run")
    p.add_argument(
        "--max-tokens",
        "--max_tokens",
        "--max-new-tokens",
        type=int,
        default=512,
        metavar="N",
        help="longest answer (default: %(default)s)",
    )


def main(args: argparse.Namespace) -> int:
    """Answer once, or line by line."""
    from surgery.answer.conversation import Conversation
    from surgery.answer.runtime import Runtime, Sampling
    from surgery.base.pictures import open_picture

    if args.max_tokens < 1:
        raise UserError(f"max-tokens is {args.max_tokens}, must be 1 or more.")
    sampling = Sampling(args.temperature, args.top_k, args.top_p, args.seed)
    pictures = [open_picture(path) for path in args.image]
    conversation = Conversation(Runtime(args.package), sampling, args.max_tokens)
    if args.prompt is not None:
        answer(conversation, args.prompt, pictures)
    else:
        converse(conversation, pictures)
    return 0


def answer(conversation: Conversation, text: str, pictures: list[Image.Image]) -> None:
    """Print an answer as it comes."""
    with contextlib.closing(conversation.say(text, pictures)) as pieces:
        for piece in pieces:
            print(piece, end="", flush=True)
    print(flush=True)


def converse(conversation: Conversation, pictures: list[Image.Image]) -> None:
    """Read turns from the terminal, or a line each from another input, until it ends."""
    from surgery.base.pictures import open_picture

    terminal = sys.stdin.isatty()
    if terminal:
        console.print(HELP)
    while True:
        try:
            line = input("> " if terminal else "").strip()
        except (EOFError, KeyboardInterrupt):
            return
        word, _, rest = line.partition(" ")
        try:
            if word == "/quit":
                return
            if word == "/new":
                conversation.messages, conversation.pictures, pictures = [], [], []
            elif word == "/image":
                pictures = [*pictures, open_picture(rest.strip())]
            elif line:
                answer(conversation, line, pictures)
                pictures = []
        except UserError as e:
            if not terminal:
                raise
            complain(e)
        except KeyboardInterrupt:
            print(flush=True)  # the answer so far stays in the conversation
            pictures = []
