"""The passes as one pass of Olive (olive-ai 0.13).

A package configuration says where it is, and repeats Olive's own passes that a run needs too:

    {"passes": {"Surgery": {"module_path": "surgery.olive.Surgery"}}}

A step of a run names passes in their order, with arguments where they need some:

    {"type": "Surgery", "passes": ["tidy", {"pass": "matmul_nbits", "bits": 4, "block": 32}]}
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from surgery import graph, passes
from surgery.base.errors import UserError
from surgery.rewrite.contract import Pass


def chosen(steps: Iterable[str | dict[str, Any]]) -> list[Pass]:
    """Make the passes of a configuration; raise `UserError` for one that cannot be made."""
    made: list[Pass] = []
    known = {cls.name: cls for n in passes.__all__ if isinstance(cls := getattr(passes, n), type)}
    for step in steps:
        arguments = {"pass": step} if isinstance(step, str) else dict(step)
        name = arguments.pop("pass", None)
        if name != "tidy" and name not in known:
            raise UserError(f"Surgery: no pass {name!r}; `python -m surgery --list` names them.")
        try:
            made += passes.TIDY if name == "tidy" else [known[name](**arguments)]
        except TypeError as e:
            raise UserError(f"Surgery: {name}: {e}.") from e
    return made


def __getattr__(name: str) -> Any:
    """Make `Surgery`; Olive, and torch with it, are imported when somebody asks for the class."""
    if name != "Surgery":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from olive import model, passes  # type: ignore[import-not-found]

    class Surgery(passes.Pass):  # type: ignore[misc]
        """Load an ONNX model from its path, run passes on it, save it; weights are streamed."""

        @classmethod
        def _default_config(cls, accelerator_spec: Any) -> dict[str, Any]:
            param = passes.pass_config.PassConfigParam
            return {"passes": param(type_=list, required=True, description="as `chosen` takes")}

        def _run_for_config(self, source: Any, config: Any, output_model_path: str) -> Any:
            folder = Path(output_model_path.removesuffix(".onnx"))
            file = graph.load(source.model_path).run(*chosen(config.passes)).save(folder)
            return model.ONNXModelHandler(model_path=str(folder), onnx_file_name=file.name)

    globals()["Surgery"] = Surgery
    return Surgery
