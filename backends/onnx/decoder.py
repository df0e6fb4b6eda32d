"""Export a causal language model to an ONNX directory with which runtimes can generate text.

The directory has the files that :mod:`.artifact` describes. In the layout of ONNX Runtime it also has
``genai_config.json``, for onnxruntime-genai.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from ...runtime.tolerances import ONNX_LOGITS_TOLERANCE
from ..atomic_directory import atomic_directory
from ..exporter import numbered
from .artifact import OnnxChecks, OnnxReport, OnnxRequest, write_program, write_report
from .check import check_onnx
from .genai import write_genai_config
from .quantize import convert_weights
from .rounding import GROWTH, check_rounded
from .runtime import OnnxDecoder
from .trace import load_causal_lm, trace_onnx

STAGES, ROUNDED_STAGES = 7, 5
"""How often it is said what is going on; and how often more where weights are converted."""


def export_onnx(request: OnnxRequest, *, progress: Callable[[str], None] | None = None) -> OnnxReport:
    """Export a model to ONNX, check it in ONNX Runtime, then move it into place.

    One graph is used for prefill (past length 0) and for decoding; batch size, sequence length and past length are
    dynamic. The weights are exported as float32 and checked. Then they are converted to the requested dtype and checked
    again.

    Args:
        request: source, output and options.
        progress: called with a message when a new step begins.

    Raises:
        RequestError: an option or a directory is not valid. This is checked before any work.
        FxpruneError: the model cannot be exported, differs in ONNX Runtime, or cannot be written.
    """
    rounded = request.dtype != "float32"
    say = numbered(progress or (lambda _message: None), STAGES + (ROUNDED_STAGES if rounded else 0))
    request.check()
    say(f"loading {request.source}")
    model, source_dtype = load_causal_lm(request.original)
    say("tracing and converting to ONNX")
    program = trace_onnx(model, optimize=request.optimize, opset=request.opset)
    with atomic_directory(request.out, force=request.force, seen=request.seen) as staging:
        say("writing the graph and its weights")
        copied = write_program(request, program, model, staging)
        decoder = OnnxDecoder(staging, file_name=request.file, provider=request.provider)
        agreement = check_onnx(decoder, model, request.optimize, say)
        checks = OnnxChecks(**dataclasses.asdict(agreement), tolerance=ONNX_LOGITS_TOLERANCE)
        if rounded:
            say(f"converting the weights to {request.dtype}")
            convert_weights(staging / request.file, request.dtype, request.data)
            decoder = OnnxDecoder(staging, file_name=request.file, provider=request.provider)
            loss = check_rounded(decoder, model, request.dtype, say)
            checks = dataclasses.replace(checks, **dataclasses.asdict(loss), growth_tolerance=GROWTH[request.dtype])
        if request.place.genai:
            write_genai_config(staging, request.file, decoder.inputs, request.optimize)
        return write_report(request, program, staging, checks, copied=copied, source_dtype=source_dtype)
