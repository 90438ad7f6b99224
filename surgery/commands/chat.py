"""Ask the model in a package a question, or hold a conversation with it.

In a conversation, each line is a turn. "/image PATH" adds a picture to the next turn, "/video PATH"
a video, "/new" starts a new conversation, and "/quit" or the end of the input ends the command.
Ctrl-C stops an answer.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import unicodedata
from typing import TYPE_CHECKING, Any

from surgery.base.console import complain, console
from surgery.base.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

    from surgery.answer.conversation import Conversation
    from surgery.answer.runtime import Picture
    from surgery.base.frames import Frames

HELP = (
    "Each line is a turn. /image PATH adds a picture to the next turn, /video PATH a video, /new "
    "starts a new conversation, /quit ends the command."
)
IMAGE, VIDEO = "--image", "--video"


class Shown(argparse.Action):
    """Keeps pictures and videos in the order of the command line, by the option's name."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Add one."""
        namespace.shown = [*namespace.shown, (self.option_strings[0], values)]


def configure(p: argparse.ArgumentParser) -> None:
    """Define the package, the question, and how tokens are sampled."""
    p.add_argument("package", metavar="DIR", help="package directory")
    p.add_argument(
        "prompt", metavar="PROMPT", nargs="?", help="the question (default: start a conversation)"
    )
    p.add_argument(
        IMAGE,
        metavar="PATH",
        action=Shown,
        dest="shown",
        default=[],
        help="picture in any format that Pillow can read; repeat the option for several pictures",
    )
    p.add_argument(
        VIDEO,
        metavar="PATH",
        action=Shown,
        dest="shown",
        default=[],
        help="video (Qwen3-VL): a folder of frames, an animation that Pillow can read, or with "
        "PyAV installed a video file; pictures and videos may be mixed",
    )
    add_frames(p)
    p.add_argument(
        "--temperature",
        type=float,
        metavar="T",
        help="sampling temperature; 0 always takes the most likely token "
        "(default: the setting of the package)",
    )
    p.add_argument(
        "--top-k", "--top_k", type=int, metavar="K", help="sample from the K most likely tokens"
    )
    p.add_argument(
        "--top-p",
        "--top_p",
        type=float,
        metavar="P",
        help="sample from the most likely tokens whose probabilities add up to P",
    )
    p.add_argument("--seed", type=int, metavar="N", help="seed of the sampling, to repeat a run")
    p.add_argument(
        "--max-tokens",
        "--max_tokens",
        "--max-new-tokens",
        type=int,
        default=512,
        metavar="N",
        help="largest number of tokens in an answer (default: %(default)s)",
    )


def add_frames(p: argparse.ArgumentParser) -> None:
    """Add the options that say which frames of a video are taken."""
    p.add_argument(
        "--fps",
        type=float,
        metavar="F",
        help="frames to take from a second of video; a folder's frames count as taken so "
        "(default: the setting of the package)",
    )
    p.add_argument(
        "--max-frames",
        "--max_frames",
        type=int,
        metavar="N",
        help="largest number of frames of a video (default: the setting of the package)",
    )


def main(args: argparse.Namespace) -> int:
    """Answer the question, or hold a conversation."""
    from surgery.answer.conversation import Conversation
    from surgery.answer.runtime import Sampling
    from surgery.answer.text_runtime import open_package
    from surgery.base.videos import check_sampling

    if args.max_tokens < 1:
        raise UserError(f"--max-tokens is {args.max_tokens}, must be 1 or more.")
    sampling = Sampling(args.temperature, args.top_k, args.top_p, args.seed)
    check_sampling(args.fps, args.max_frames)
    opened = [open_shown(option, path) for option, path in args.shown]
    lasting = args.prompt is None
    conversation = Conversation(open_package(args.package), sampling, args.max_tokens, lasting)
    chosen = args.fps, args.max_frames
    pictures = [ready(conversation, found, *chosen) for found in opened]
    if args.prompt is not None:
        answer(conversation, args.prompt, pictures)
    else:
        converse(conversation, pictures, *chosen)
    return 0


def open_shown(option: str, path: str) -> Image.Image | Frames:
    """The picture or video that an option names.

    Raises:
        UserError: it cannot be read.
    """
    from surgery.base.frames import open_frames
    from surgery.base.pictures import open_picture

    return open_picture(path) if option == IMAGE else open_frames(path)


def ready(
    conversation: Conversation, found: Image.Image | Frames, fps: float | None, most: int | None
) -> Picture:
    """A picture as it is, a video with its frames sampled.

    Raises:
        UserError: the package takes no videos, or the video cannot be read.
    """
    from surgery.base.frames import Frames

    return conversation.runtime.clip(found, fps, most) if isinstance(found, Frames) else found


def answer(conversation: Conversation, text: str, pictures: list[Picture]) -> None:
    """Print an answer piece by piece as the model generates it."""
    with contextlib.closing(conversation.say(text, pictures)) as pieces:
        for piece in pieces:
            print(harmless(piece), end="", flush=True)
    print(flush=True)


def harmless(piece: str) -> str:
    """A piece of an answer without characters that steer a terminal: a tokenizer may hold any."""
    return "".join(c for c in piece if c in "\n\t" or unicodedata.category(c) != "Cc")


def converse(
    conversation: Conversation, pictures: list[Picture], fps: float | None, most: int | None
) -> None:
    """Read one turn per line from standard input until it ends, with a prompt on a terminal."""
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
            elif word in ("/image", "/video"):
                found = open_shown(word.replace("/", "--"), rest.strip())
                pictures = [*pictures, ready(conversation, found, fps, most)]
            elif line:
                answer(conversation, line, pictures)
                pictures = []
        except UserError as e:
            if not terminal:
                raise
            complain(e)
        except KeyboardInterrupt:
            print(flush=True)  # the conversation keeps the answer so far
            pictures = []
