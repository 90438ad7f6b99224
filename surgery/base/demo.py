"""Paths of the demo checkpoint in this project: a small model of the real architecture."""

from __future__ import annotations

from pathlib import Path

DEMO = Path(__file__).resolve().parents[2] / "export_min" / "demo"
"""Folder of the checkpoint. The packages `surgery` and `export_min` are in the same directory."""

QUESTIONS = DEMO / "questions" / "questions.jsonl"
"""Questions with known answers about pictures that the checkpoint was not trained on."""
