"""Write the files of a package for transformers.js."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from surgery.base.console import progress
from surgery.engine.facts import Facts
from surgery.package import transformers_js
from surgery.package.browser_card import browser_card
from surgery.package.external_data import Layout, write_graphs
from surgery.package.page import write_page


def write_browser(models: dict[str, ir.Model], folder: Path, facts: Facts) -> tuple[Layout, str]:
    """Write the graphs with data files of their own, then the configurations that count these.

    Args:
        models: the finished graphs by name.
        folder: an existing directory.
        facts: the checkpoint and the options.

    Returns:
        The sizes of the data files by their paths in the package, and a line for the user about
        the tokenizer; "" if there is nothing to say.

    Raises:
        PackageError: a file of the checkpoint is not what it must be.
    """
    place = folder / transformers_js.FOLDER
    place.mkdir()
    whole, counts = Layout(), {}
    with progress(in_bytes=True) as bar:
        task = bar.add_task("weights", total=None)

        def report(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        for part, name in transformers_js.filenames(facts).items():
            layout = write_graphs(
                {name: models[part]},
                place,
                report=report,
                strict=True,
                data=transformers_js.DATA,
                limit=transformers_js.LARGEST,
            )
            counts[name] = len(layout.sizes)
            whole.sizes |= {f"{place.name}/{file}": size for file, size in layout.sizes.items()}
    write_page(facts, folder, sum(file.stat().st_size for file in place.iterdir()))
    copied = transformers_js.write_configurations(facts, folder, counts)
    (folder / "README.md").write_text(browser_card(facts, whole), encoding="utf-8")
    return whole, copied
