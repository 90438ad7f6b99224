"""Writes held-out pictures and questions as files, for anything that can read PNG and JSON lines.

    python -m tests.demo.questions OUT --easy 1000 --own 200

OUT/questions.jsonl has a line a question: {"image": path or list of paths, "question", "answer",
"kind"}, with paths relative to OUT. "easy" counts real test pictures of easy-VQA, "own" pictures
(or pairs of them) of each of our own kinds of scene.
"""

import argparse
import json
from pathlib import Path

from PIL import Image

from tests.demo import evaluate
from tests.demo.batches import Row

SKIP = ("relation", "samecolor")  # the model hardly beats chance on these, see its card


def write(rows: list[Row], out: Path, most: int) -> int:
    """Writes every picture once and up to `most` of its questions; returns how many questions."""
    (out / "images").mkdir(parents=True, exist_ok=True)
    lines = []
    for number, row in enumerate(rows):
        paths = [
            save(picture, out, f"{number:04}{'ab'[at]}") for at, picture in enumerate(row.pictures)
        ]
        asked = [each for each in dict.fromkeys(row.questions) if each.kind not in SKIP]
        for question in asked[:most]:
            lines.append(
                {
                    "image": paths[0] if len(paths) == 1 else paths,
                    "question": question.text,
                    "answer": question.answer,
                    "kind": question.kind,
                }
            )
    (out / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return len(lines)


def save(picture: Image.Image, out: Path, name: str) -> str:
    path = f"images/{name}.png"
    picture.save(out / path, optimize=True)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--easy", type=int, default=1000, help="pictures of easy-VQA's test set")
    parser.add_argument("--own", type=int, default=200, help="of each kind of scene of our own")
    parser.add_argument("--most", type=int, default=100, help="questions a picture")
    args = parser.parse_args()
    rows = evaluate.easy_vqa_test(args.easy) + evaluate.own_test(args.own)
    print(f"{write(rows, args.out, args.most)} questions about {len(rows)} pictures in {args.out}")


if __name__ == "__main__":
    main()
