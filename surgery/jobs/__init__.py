"""The two jobs: build a package from a raw export, and run a generic recipe on any ONNX graph."""
