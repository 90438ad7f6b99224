"""Graph passes that turn raw ONNX graphs into packages for onnxruntime-genai."""
