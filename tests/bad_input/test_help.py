"""Every command says what it does."""

from __future__ import annotations

import pytest

from export_min.__main__ import main as export
from surgery.__main__ import COMMANDS
from surgery.__main__ import main as surgery


@pytest.mark.parametrize(
    ("main", "words"),
    [
        *((export, words) for words in ([], ["check"], ["answer"])),
        *((surgery, words) for words in ([], *([name] for name in COMMANDS))),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value.__module__,
)
def test_help(main, words, capsys):
    with pytest.raises(SystemExit) as end:
        main([*words, "--help"])
    assert end.value.code == 0
    assert "usage: python -m" in capsys.readouterr().out
