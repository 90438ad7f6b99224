"""Calibration: what the inputs of each weight look like, and the 4-bit weights that suit them.

The float decoder is cut into pieces that hand on one activation each, usually its layers, and run
piece by piece in onnxruntime on tokens that the model itself has sampled. Memory holds one piece,
whatever the size of the model.
"""
