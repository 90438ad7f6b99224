"""Using a package: the runtime, conversations, questions with known answers, PyTorch beside it."""
