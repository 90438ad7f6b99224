"""What a package for transformers.js has beside graphs and configurations: the page and its code.

`index.html` is one file that any web server can give out: it asks about pictures in a browser.
`prepare.mjs` is the part of it that other programs need, too: a conversation's inputs.
"""

from __future__ import annotations

from pathlib import Path

import jinja2
import onnx_ir as ir

from surgery.engine.facts import Facts
from surgery.package.card import origin

VERSION = "4.3.1"
"""The transformers.js that the page loads, and that the tests run."""
PAGE, PREPARE = "index.html", "prepare.mjs"


def write_page(facts: Facts, folder: Path, size: int) -> None:
    """Write both files.

    Args:
        facts: the checkpoint and the options.
        folder: the package.
        size: bytes of the graphs with their data, all of which the page loads.
    """
    options = facts.options
    half = ir.DataType.FLOAT16 in (facts.text_dtype, facts.vision_dtype)
    values = {
        "version": VERSION,
        "name": origin(facts),
        "about": f"{options.text_precision}, transformers.js {VERSION}",
        "size": f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB",
        "facts": {"limit": options.max_length, "bytes": size, "half": half},
    }
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("surgery.package"),
        autoescape=jinja2.select_autoescape(["html"]),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    for name in (PAGE, PREPARE):
        text = environment.get_template(name).render(values)
        (folder / name).write_text(text, encoding="utf-8", newline="\n")
