"""`python -m export_min check`: the PyTorch pipeline on four texts and a picture."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from export_min.__main__ import main


def test_answers_are_printed_and_saved(tmp_path, capsys):
    out = tmp_path / "answers.txt"
    assert main(["check", "-o", str(out), "--max-new-tokens", "4"]) == 0
    text = out.read_text()
    assert text in capsys.readouterr().out
    for name in ("greeting", "question", "short story", "code", "picture"):
        assert f"[{name}] " in text


def test_a_picture_of_your_own(tmp_path, capsys):
    path = tmp_path / "picture.webp"
    Image.fromarray(np.zeros((64, 96, 3), np.uint8)).save(path)
    words = ["-o", str(tmp_path / "answers.txt"), "--max-new-tokens", "2", "--image", str(path)]
    assert main(["check", *words]) == 0
    assert main(["check", *words[:-1], str(tmp_path)]) == 2


def test_weights_that_are_not_numbers(cases, tmp_path, capsys):
    from tiny_checkpoint import TINY, write_checkpoint

    source = write_checkpoint(TINY["untied"], tmp_path / "checkpoint")
    weights = load_file(source / "model.safetensors")
    weights["model.language_model.norm.weight"][0] = float("nan")
    save_file(weights, source / "model.safetensors")
    out = tmp_path / "answers.txt"
    assert main(["check", "-i", str(source), "-o", str(out)]) == 2
    assert "are not finite" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("place", ["/proc/answers.txt", "{file}/answers.txt"])
def test_answers_that_cannot_be_saved(tmp_path, capsys, place):
    file = tmp_path / "file"
    file.write_text("")
    words = ["-o", place.format(file=file), "--max-new-tokens", "1"]
    assert main(["check", *words]) == 2
    assert "cannot be written" in capsys.readouterr().err
