"""What an export to ONNX can be asked for. Declared without the packages that carry it out, which are an extra."""

from __future__ import annotations

from ...ir.errors import RequestError

ONNX_DTYPES = ("float32", "float16", "int8", "int4")

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "none": "CPUExecutionProvider"}
"""The execution provider for which a graph is optimised, and on which it is checked if this machine has it."""

_OPSETS = range(18, 26)
"""torch.onnx never writes an opset below 18, and this onnxruntime reads none above 25."""


def check_opset(opset: int | None) -> None:
    """Refuse a version of the operator set that cannot be written or read; None is the exporter's own choice."""
    if opset is not None and opset not in _OPSETS:
        raise RequestError(f"opset {opset} is not supported", f"choose {_OPSETS[0]} to {_OPSETS[-1]}")
