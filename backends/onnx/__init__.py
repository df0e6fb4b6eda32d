"""ONNX: graphs, their names and layout, rounding of weights, checks in ONNX Runtime."""
