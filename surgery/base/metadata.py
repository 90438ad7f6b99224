"""Metadata that torch.onnx attaches to nodes."""

from __future__ import annotations

SCOPES = "pkg.torch.onnx.name_scopes"
"""Key whose value is a Python list of module paths, from the root to the node itself."""
