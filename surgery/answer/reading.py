"""Does the runtime read text as Hugging Face does? Asked of texts that tell the readings apart.

onnxruntime-genai has a tokenizer of its own. It takes the kind from `tokenizer_class` and from the
decoder in tokenizer.json, knows some kinds of splitting, and passes over what it does not know. So
a package may load, and yet read a space as no token at all. Every package is therefore asked: both
tokenizers encode the same texts, without the tokens that begin or end a text, and decode them.

Three differences of the runtime are no fault of a package. It applies no normalizer: where that is
all, and only in texts that are not composed (Unicode's NFC and NFKC), it is told and not refused,
since all packages of Qwen have it. It keeps the space in front of an answer that SentencePiece
tokenizers drop. A null character ends a text; no text here has one.

Both read in a process of their own. A tokenizer may come from anyone, and a regular expression in
it may take for ever.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from surgery.base.errors import PackageError, first_line
from surgery.base.files import shown
from surgery.base.processes import ending, limit_memory

SECONDS = 120.0
"""Time for both to load and read. Vocabularies of 150,000 take one or two."""
MEMORY = 4 << 30
"""Bytes of address space of the process."""
MOST_ADDED = 256
"""Added tokens that are tried, the first ones."""
SHOWN_IDS = 8
"""Ids of a reading that a message repeats."""

TEXTS = (
    "Hello world",
    " one space before, two  between, three   behind   ",
    "    ",
    "line\nnext\n\nparagraph\n\n\n  indented\t\ttabs\r\nend\n",
    "1 22 333 4444 1234567890 3.14 1,000,000 2024x x2024",
    "don't I'll we've it's HE'S I'LL",
    "def f(x):\n    return x**2  # ok\n\nif (a != b) { c[i] += 'x'; }\n",
    'snake_case camelCase <tag attr="1"/> http://a.b/c?d=e&f#g user@host.org',
    "...!!!??? -- — “quotes” «guillemets» (a) [b] {c}",
    "naïve café Ünïcödé Straße Łódź İstanbul",
    "Привет, мир! Γειά σου. שלום مرحبا بالعالم",
    "नमस्ते दुनिया สวัสดีชาวโลก",
    "你好，世界！こんにちは、世界。안녕하세요 세계",
    "😀👍🏽👩‍👩‍👧 🇪🇺 ✓ → ∑ 𝐀",
    "\u00a0no-break\u2003em\u200bzero\ufeff",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa========--------",
)
"""Texts in composed form. Each has something that tokenizers are known to split differently."""
OTHER_FORMS = ("e\u0301clair A\u030angstro\u0308m", "\u1100\u1161\u11a8", "ﬁne ① ½ Ｆｕｌｌ")
"""Texts that a normalizer composes."""


NOT_COMPOSED = (
    "tokenizer.json: Hugging Face composes a text before it reads it (normalizer), "
    "onnxruntime-genai does not: a letter whose accent is a character of its own becomes other "
    "tokens. Give the package composed text (Unicode NFC)"
)
"""What is told where only texts of other forms differ."""


@dataclass(frozen=True)
class Difference:
    """A text that the two read differently.

    Attributes:
        text: what was read.
        ours: the runtime's ids; a text where it failed, or where ids mean another text to it.
        theirs: those of Hugging Face.
        form: whether it is only that the runtime does not normalize a text of another form.
    """

    text: str
    ours: list[int] | str
    theirs: list[int] | str
    form: bool = False

    def __str__(self) -> str:
        """One clause, ids shortened."""
        return (
            f"onnxruntime-genai reads {shown(self.text)} as {brief_ids(self.ours)}, "
            f"Hugging Face as {brief_ids(self.theirs)}"
        )


class Reading:
    """Asks in the background, from the beginning of a `with` block; `note` waits for the answer."""

    def __init__(self, folder: Path, file: Path) -> None:
        """Start to ask.

        Args:
            folder: a package, whose graphs need not be there yet. The runtime reads it.
            file: tokenizer.json that Hugging Face reads: that of the checkpoint, or the package's.
        """
        self.file = file
        command = [sys.executable, "-m", "surgery.answer.reading", str(folder), str(file)]
        self.child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            start_new_session=True,  # Ctrl-C comes to this process alone, which ends that one
        )

    def __enter__(self) -> Reading:
        """Nothing more to do."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End the process, whatever it does."""
        self.child.kill()
        self.child.communicate()

    def note(self) -> str:
        """What the user should know; "" where both read everything alike.

        Raises:
            PackageError: they read a text differently, or one of them cannot read at all.
        """
        try:
            said, _ = self.child.communicate(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            raise PackageError(
                f"{self.file}: the tokenizer does not come to an end within {SECONDS:g} s."
            ) from None
        if not said:
            how = ending(self.child.returncode)
            raise PackageError(f"{self.file}: the process that read texts with it {how}.")
        return judged(self.file, json.loads(said))


def judged(file: Path, answer: dict[str, Any]) -> str:
    """The verdict on what the other process found.

    Args:
        file: tokenizer.json, for messages.
        answer: "error", or "differences" and the number of "texts".

    Raises:
        PackageError: as `Reading.note`.
    """
    if "error" in answer:
        raise PackageError(f"{file}: {answer['error']}")
    found = [Difference(**fields) for fields in answer["differences"]]
    wrong = [difference for difference in found if not difference.form]
    if wrong:
        count = f"{len(wrong)} of {answer['texts']} texts"
        raise PackageError(f"{file}: {wrong[0]} ({count}).")
    return NOT_COMPOSED if found else ""


def brief_ids(ids: list[int] | str) -> str:
    """Ids in a message."""
    if isinstance(ids, str):
        return shown(ids)
    more = ", ..." if len(ids) > SHOWN_IDS else ""
    return f"[{', '.join(map(str, ids[:SHOWN_IDS]))}{more}]"


def differences(folder: Path, file: Path) -> dict[str, Any]:
    """What the two read differently, as `judged` takes it.

    Args:
        folder: a package.
        file: tokenizer.json that Hugging Face reads.

    Raises:
        BaseException: a tokenizer cannot be loaded, or does not encode or decode; of any class.
    """
    import onnxruntime_genai as og
    from tokenizers import Tokenizer

    reader = "Hugging Face's tokenizers"
    try:
        theirs = Tokenizer.from_file(str(file))
        tokens = theirs.get_added_tokens_decoder().values()
        added = [token.content for token in tokens if "\0" not in token.content][:MOST_ADDED]
        texts = [*TEXTS, *OTHER_FORMS, *(f"a{text}b {text} c\n{text}\n" for text in added)]
        wanted = [theirs.encode(text, add_special_tokens=False).ids for text in texts]
        spoken = [theirs.decode(ids) for ids in wanted[: len(TEXTS)]]
        forms = [normalized(theirs, text) for text in texts]
        reader = "onnxruntime-genai"
        ours = og.Tokenizer(og.Config(str(folder)))
        found = [ours.encode(text).tolist() for text in texts]
        heard = [ours.decode(np.array(ids, np.int32)) for ids in wanted[: len(TEXTS)]]
        composed = [ours.encode(text).tolist() for text in forms]
    except BaseException as e:  # a panic of tokenizers is no Exception
        return {"error": f"{reader} cannot read it: {first_line(e)}"}
    differ = []
    for i, text in enumerate(texts):
        if found[i] != wanted[i]:
            form = text in OTHER_FORMS and composed[i] == wanted[i]
            differ.append(asdict(Difference(text, found[i], wanted[i], form)))
        elif i < len(TEXTS) and heard[i] not in (spoken[i], f" {spoken[i]}"):
            differ.append(asdict(Difference(text, heard[i], spoken[i])))
    return {"texts": len(texts), "differences": differ}


def normalized(tokenizer: Any, text: str) -> str:
    """A text as the normalizer of a tokenizer writes it."""
    normalizer = tokenizer.normalizer
    return text if normalizer is None else str(normalizer.normalize_str(text))


def main(folder: str, file: str) -> int:
    """Print the answer as JSON."""
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer
    limit_memory(MEMORY)
    json.dump(differences(Path(folder), Path(file)), answer)
    answer.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
