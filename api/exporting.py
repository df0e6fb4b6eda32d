"""``export``: write a Hugging Face model in another format."""

from __future__ import annotations

from pathlib import Path

from ..backends.onnx import export_onnx
from ..backends.onnx_artifact import OnnxReport, Request
from ..backends.onnx_forward import Forward, export_forward
from ..ir.errors import RequestError
from ..tracer.example import example_inputs
from ..tracer.export import calls
from ..tracer.model import load_config, load_model, resolve
from .calling import Calling
from .progress import Progress, silent

FORMATS = ("onnx",)


def export(
    model: str | Path,
    out: str | Path,
    *,
    format: str = "onnx",
    dtype: str = "float32",
    layout: str = "onnxruntime",
    optimize: str = "cpu",
    cache: bool = True,
    example: str | None = None,
    force: bool = False,
    trust_remote_code: bool = False,
    progress: Progress = silent,
) -> OnnxReport:
    """Write a model in another format. The result is compared with the original before it is written.

    Args:
        model: a Hugging Face model directory, a Hub id, or ``demo``; usually a directory that :func:`fxprune.apply`
            wrote.
        out: the directory to write. It appears complete or not at all.
        format: ``onnx``.
        dtype: data type of the weights: ``float32``, ``float16``, or weight-only ``int8`` and ``int4``. The last two
            are quantized with the tools of ONNX Runtime, and refused if perplexity grows too much (docs/deploy.md).
        layout: ``onnxruntime``, which onnxruntime-genai runs too, or ``transformers.js``.
        optimize: fuse operators for ONNX Runtime on ``cpu`` or ``cuda``; ``none`` for standard ONNX operators only.
        cache: whether a causal language model gets a key-value cache; without one it reads whole sequences.
        example: the inputs of a model that is not a causal language model, such as
            ``pixel_values=float32[2,3,224,224]``. When None, they are made from its configuration.
        force: whether to replace an existing ``out``.
        trust_remote_code: whether the model's own code may run.
        progress: called with a message when a new step begins.

    Raises:
        RequestError: an unknown format or option, a model that cannot be found or loaded, or an ``out`` that exists.
        FxpruneError: the model cannot be exported, or the result differs from it.
    """
    if format not in FORMATS:
        raise RequestError(f"unknown --format {format!r}", f"choose from {', '.join(FORMATS)}")
    source = resolve(model, trust_remote_code=trust_remote_code)
    config = load_config(source)
    request = Request(source.directory, Path(out), dtype=dtype, layout=layout, optimize=optimize, force=force)
    language = Calling(config, example).language
    if not language and not cache:
        raise RequestError(
            f"--no-cache has no effect: {source.name} is not a causal language model", "leave --no-cache out"
        )
    if language and cache:
        return export_onnx(request, trust_remote_code=trust_remote_code, progress=progress)
    progress(f"loading {source.name}")
    module = load_model(source)
    forward = Forward(module, example_inputs(module, example), calls()["inner"])
    held = str(getattr(config, "dtype", None) or "float32").removeprefix("torch.")
    return export_forward(request, forward, source_dtype=held, progress=progress)
