"""What the Hugging Face hub reads at the top of a package's README: its metadata.

https://huggingface.co/docs/hub/model-cards#model-card-metadata
"""

from __future__ import annotations

import re
from typing import Any

from surgery.engine.facts import Facts

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
WORD = re.compile(r"[\w.+-]{1,80}")
LINK = re.compile(r"(https://[\w./?=&%#:+~-]{1,300}|LICENSE)")
LARGEST = 1 << 20
"""Bytes of the longest README whose metadata is read."""
LICENSE = {"license": WORD, "license_name": WORD, "license_link": LINK}
"""Fields on the license, and what they may hold."""


def metadata(facts: Facts, source: str) -> str:
    """The block of metadata in front of a README.

    The license is that of the source, where its own README names one.

    Args:
        facts: the raw export and the options.
        source: what the checkpoint is called in public.
    """
    from huggingface_hub import ModelCardData

    known = HUB_ID.fullmatch(source) is not None
    options = facts.options
    made = {"onnx", options.runtime, facts.traits.runtime, options.text_precision}
    data = ModelCardData(
        base_model=source if known else None,
        base_model_relation="quantized" if known and facts.quantized else None,
        pipeline_tag="image-text-to-text",
        library_name=options.runtime,
        tags=sorted(made),
        **license_of(facts),
    )
    return f"---\n{data.to_yaml()}\n---\n"


def license_of(facts: Facts) -> dict[str, Any]:
    """The fields of the source's own README on its license; none where it has none.

    They come from strangers: only words and links are taken over, and a README that cannot be read
    counts as none.
    """
    from huggingface_hub import ModelCard

    file = facts.checkpoint / "README.md"
    try:
        if not file.is_file() or file.stat().st_size > LARGEST:
            return {}
        given = ModelCard(file.read_text(encoding="utf-8"), ignore_metadata_errors=True).data
    except Exception:  # of any library that reads YAML
        return {}
    found = {name: given.get(name) for name in LICENSE}
    return {
        name: value
        for name, value in found.items()
        if isinstance(value, str) and LICENSE[name].fullmatch(value)
    }
