"""A demo checkpoint to damage, a raw export of it, and the one way a command may fail."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from refusal import Refused

from surgery.base.demo import DEMO

FILES = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "model.safetensors",
)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A copy of the demo checkpoint."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for name in FILES:
        shutil.copyfile(DEMO / name, folder / name)
    return folder


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A raw export with its checkpoint beside it; to be copied, not changed.

    The environment variable RAW_EXPORT names one of the demo that was made before.
    """
    from export_min import export

    folder = tmp_path_factory.mktemp("exported")
    (folder / "checkpoint").mkdir()
    for name in FILES:
        shutil.copyfile(DEMO / name, folder / "checkpoint" / name)
    if "RAW_EXPORT" not in os.environ:
        return export(folder / "checkpoint", folder / "raw")
    raw = Path(shutil.copytree(os.environ["RAW_EXPORT"], folder / "raw"))
    manifest = json.loads((raw / "manifest.json").read_text())
    manifest["checkpoint"] = manifest["weights"] = str(folder / "checkpoint")
    (raw / "manifest.json").write_text(json.dumps(manifest))
    return raw


@pytest.fixture
def raw(exported: Path, tmp_path: Path) -> Path:
    """A copy of the raw export; its checkpoint is shared."""
    return Path(shutil.copytree(exported, tmp_path / "raw"))


@pytest.fixture
def moved(raw: Path, tmp_path: Path) -> Path:
    """The checkpoint of this test's raw export, copied to a place of its own, to be changed."""
    manifest = json.loads((raw / "manifest.json").read_text())
    folder = Path(shutil.copytree(manifest["checkpoint"], tmp_path / "checkpoint"))
    manifest["checkpoint"] = manifest["weights"] = str(folder)
    (raw / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Refused:
    """Run a command that must fail: exit code 2, one line, nothing written; returns the line."""

    def run(main: Callable[[list[str]], int], *words: object) -> str:
        before = sorted(tmp_path.rglob("*"))
        capsys.readouterr()
        code = main([str(word) for word in words])
        out, err = capsys.readouterr()
        last = err.strip().splitlines()[-1]
        assert code == 2, err
        assert last.startswith("error: ") and "Traceback" not in err and not out
        assert sorted(tmp_path.rglob("*")) == before, "something was left behind"
        return last

    return run
