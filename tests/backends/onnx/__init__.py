"""ONNX directories."""
