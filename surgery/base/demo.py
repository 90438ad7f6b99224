"""Where the demo checkpoint lies, which comes with the program: the real architecture, small."""

from __future__ import annotations

from pathlib import Path

DEMO = Path(__file__).resolve().parents[2] / "export_min" / "demo"
"""The checkpoint's folder; the packages `surgery` and `export_min` lie side by side."""

QUESTIONS = DEMO / "questions" / "questions.jsonl"
"""Questions with known answers about pictures that the checkpoint was not trained on."""
