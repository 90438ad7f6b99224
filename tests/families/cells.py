"""The table of exporters: each model, attention and exporter is a cell with a graph and inputs."""

from __future__ import annotations

import hashlib
import inspect
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from exporters import EXPORTERS, Exporter
from fixed import FIXED
from optimum import KEPT, Kept
from own_exporter import OWN, OwnExporter
from stock import SUBJECTS, Decoder, Encoder

ATTENTIONS = ("sdpa", "eager")
OWNED = ("Qwen3", "SigLIP", "BERT")
"""Models that transformers' own exporter is tried with."""
QUICK = ("Qwen3", "SigLIP")
"""Models whose slow exports every run of the tests has; TorchScript's and optimum's are quick."""


@dataclass(frozen=True)
class Cell:
    """One graph of the table.

    Attributes:
        subject: the model, or a graph that is kept.
        attention: transformers' name of the function; "" for a graph that is kept.
        exporter: who wrote it; None for optimum-onnx.
    """

    subject: Decoder | Encoder | Kept
    attention: str = ""
    exporter: Exporter | OwnExporter | None = None

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.subject.name}, {self.way}"

    @property
    def way(self) -> str:
        """Attention and exporter."""
        if self.exporter is None:
            return "optimum-onnx 0.1"
        return f"{self.attention}, {self.exporter.name}"

    @property
    def quick(self) -> bool:
        """Whether the graph is written in a second or two."""
        return self.exporter is None or not self.exporter.dynamo

    def path(self, cache: Path) -> Path:
        """The graph, exported once for the same sources, torch and transformers."""
        folder = cache / self.key
        done = folder / "done"
        if not done.is_file():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            if isinstance(self.subject, Kept):
                self.subject.write(folder / "model.onnx")
            else:
                assert self.exporter is not None
                self.exporter.write(self.subject, self.attention, folder / "model.onnx")
            done.touch()
        return folder / "model.onnx"

    @property
    def key(self) -> str:
        """A word for everything that the graph depends on."""
        modules = {type(self.subject).__module__, "stock", "exporters"}
        if self.exporter is not None:
            modules.add(type(self.exporter).__module__)
        parts = [self.name, repr(self.subject), version("torch"), version("transformers")]
        parts += [inspect.getsource(sys.modules[module]) for module in sorted(modules)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:20]

    def feeds(self) -> Iterator[dict[str, np.ndarray]]:
        """Inputs by the names of the graph."""
        for case in self.subject.cases():
            yield dict(arrays(case))


def arrays(case: dict[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    """Inputs as arrays, the cache one by one."""
    for name, value in case.items():
        if isinstance(value, np.ndarray):
            yield name, value
        elif isinstance(value, list):
            for i, part in enumerate(value):
                yield f"{name}.{i // 2}.{('key', 'value')[i % 2]}", part.numpy()
        else:
            yield name, value.numpy()


CELLS = [
    *(
        Cell(subject, attention, exporter)
        for subject in SUBJECTS
        for attention in ATTENTIONS
        for exporter in EXPORTERS
    ),
    *(Cell(FIXED, "sdpa", exporter) for exporter in EXPORTERS if exporter.dynamo),
    *(
        Cell(subject, "sdpa", exporter)
        for subject in SUBJECTS
        if subject.name in OWNED
        for exporter in OWN
    ),
    *(Cell(kept) for kept in KEPT),
]
