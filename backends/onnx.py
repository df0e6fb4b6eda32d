"""A Hugging Face model directory to an ONNX directory that runtimes can generate text from.

``OUT/`` holds ``model.onnx`` (the graph, and tensors too small to matter), ``model.onnx.data`` (every other weight, so
that no size meets protobuf's limit of 2 GB), the config, generation config and tokenizer files of the source,
``genai_config.json`` for onnxruntime-genai, and ``fxprune.json`` with the checks that were made. In the layout of
transformers.js the graph is ``onnx/model.onnx``, named by dtype, and ``config.json`` says how to read it.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
import onnxruntime
from torch.nn import Module

from ..ir.errors import RequestError
from .artifact import RECORD, atomic_directory, check_target, read_record, write_json
from .genai import write_genai_config
from .onnx_check import TOLERANCE, Agreement, check_onnx
from .onnx_layout import LAYOUTS, Layout
from .onnx_quantize import DTYPES, convert_weights, save_graph
from .onnx_rounding import GROWTH, check_rounded
from .onnx_runtime import OnnxDecoder
from .onnx_trace import load_causal_lm, trace_onnx

# The execution provider that a graph is optimised for, and so verified on where this machine has it.
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "none": "CPUExecutionProvider"}
# torch.onnx writes opset 18 at least, whatever is asked; above 25, this onnxruntime reads nothing.
_OPSETS = range(18, 26)
PACKAGES = ("fxprune", "torch", "transformers", "onnx", "onnxscript", "onnxruntime")

# Config, generation config, tokenizer, chat template and the model's own code; not weights, nor records of pruning.
_COPIED_SUFFIXES = {".json", ".jinja", ".model", ".py", ".tiktoken", ".txt"}


@dataclass(frozen=True)
class OnnxReport:
    """What was exported and how well it agrees with torch.

    Attributes:
        path: the directory.
        optimize: ``cpu``, ``cuda`` or ``none``.
        opset: version of the ONNX operator set.
        provider: the execution provider of ONNX Runtime that ran the checks.
        inputs, outputs: names in the graph. ``position_ids`` is absent where the model has no such argument.
        file: the graph, relative to ``path``.
        bytes: of the graph and its external data.
        source_dtype: what the source's files hold.
        dtype: what the graph stores its weights in, see :mod:`.onnx_quantize`.
        differences: worst absolute difference of a logit by check, see :class:`.onnx_check.Agreement`; of the float32
            graph, from which the others are made.
        tolerance: what they were checked against.
        growth: by how much rounding makes perplexity grow, relative, by check, see :class:`.onnx_rounding.Loss`; empty
            for float32.
        growth_tolerance: what it was checked against.
        greedy_tokens, greedy_equal: tokens compared with torch's ``generate``, and those that are the same; none for a
            model that writes no text.
        open: names of the extents of the inputs that may vary, where the model is no causal language model.
        versions: of the packages that made it.
    """

    path: Path
    optimize: str
    opset: int
    provider: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    bytes: int
    source_dtype: str
    differences: dict[str, float]
    greedy_tokens: int
    greedy_equal: int
    versions: dict[str, str]
    dtype: str
    file: str
    growth: dict[str, float]
    growth_tolerance: float | None
    tolerance: float = TOLERANCE
    open: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The report as plain JSON values, without the path, which is not a property of the artifact."""
        fields = dataclasses.asdict(self)
        del fields["path"]
        return {"format": "onnx", **fields}


def export_onnx(
    source: Path,
    out: Path,
    *,
    dtype: str = "float32",
    layout: str = "onnxruntime",
    optimize: str = "cpu",
    opset: int | None = None,
    trust_remote_code: bool = False,
    force: bool = False,
    progress: Callable[[str], None] | None = None,
) -> OnnxReport:
    """Export the model in ``source`` to ONNX, verify it in ONNX Runtime, then move it to ``out``.

    One graph serves prefill (a past of length 0) and decoding; batch, sequence and past lengths are open. Weights of
    any dtype are exported as float32, checked, and then rounded to ``dtype`` and checked again.

    Args:
        source: a Hugging Face model directory with safetensors weights.
        out: the directory to make, complete or absent.
        dtype: ``float32``, ``float16``, ``int8`` or ``int4``, see :mod:`.onnx_quantize`.
        layout: ``onnxruntime`` or ``transformers.js``, see :mod:`.onnx_layout`.
        optimize: ``cpu`` or ``cuda`` fuses into the operators of that ONNX Runtime provider, ``none`` keeps to the ONNX
            standard. A graph for ``cuda`` is verified on CUDA where this machine has it, otherwise on the CPU, and
            refused if the CPU cannot run it.
        opset: version of the ONNX operator set; the exporter's default when None.
        trust_remote_code: whether a modelling file in ``source`` may run.
        force: whether an existing ``out`` is replaced, once the new one is complete.
        progress: called with one line per stage.

    Raises:
        RequestError: options or directories that make no sense, found before any work.
        FxpruneError: the model cannot be exported, differs in ONNX Runtime, or cannot be written.
    """
    say = progress or (lambda _message: None)
    check_request(source, out, dtype=dtype, layout=layout, optimize=optimize, opset=opset, force=force)
    say(f"loading {source}")
    model, source_dtype = load_causal_lm(source, trust_remote_code=trust_remote_code)
    say("tracing and converting to ONNX")
    program = trace_onnx(model, optimize=optimize, opset=opset)
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    place = LAYOUTS[layout]
    with atomic_directory(out, force=force) as staging:
        say("writing the graph and its weights")
        write_program(program, source, model, staging, place=place, dtype=dtype)
        provider = available_provider(optimize)
        decoder = OnnxDecoder(staging, file_name=place.file(dtype), provider=provider)
        agreement = check_onnx(decoder, model, optimize, say)
        growth: dict[str, float] = {}
        if dtype != "float32":
            say(f"converting the weights to {dtype}")
            convert_weights(staging / place.file(dtype), dtype, place.data(dtype))
            decoder = OnnxDecoder(staging, file_name=place.file(dtype), provider=provider)
            loss = check_rounded(decoder, model, dtype, say)
            growth = loss.growth
            agreement = Agreement(agreement.differences, loss.greedy_tokens, loss.greedy_equal)
        if place.genai:
            write_genai_config(staging, place.file(dtype), decoder.inputs, optimize)
        report = OnnxReport(
            path=out,
            optimize=optimize,
            opset=int(program.opset_imports[""]),
            provider=provider,
            inputs=tuple(decoder.inputs),
            outputs=tuple(decoder.outputs),
            bytes=sum(path.stat().st_size for path in staging.glob(f"{place.file(dtype)}*")),
            source_dtype=source_dtype,
            **dataclasses.asdict(agreement),
            versions=versions,
            dtype=dtype,
            file=place.file(dtype),
            growth=growth,
            growth_tolerance=GROWTH.get(dtype),
        )
        # What the source was calibrated and trained on, the export was too.
        made = read_record(source) if (source / RECORD).is_file() else {}
        write_json(staging / RECORD, {**report.as_json(), **{key: made[key] for key in ("texts",) if key in made}})
    return report


def check_request(
    source: Path, out: Path, *, dtype: str, layout: str, optimize: str, opset: int | None, force: bool
) -> None:
    """Refuse options and directories that make no sense.

    Raises:
        RequestError: naming the option and what is allowed, or saying what stands in the way of ``out``.
    """
    if dtype not in DTYPES:
        raise RequestError(f"unknown dtype {dtype!r}", f"choose one of {', '.join(DTYPES)}")
    if layout not in LAYOUTS:
        raise RequestError(f"unknown layout {layout!r}", f"choose one of {', '.join(LAYOUTS)}")
    if optimize not in _PROVIDERS:
        raise RequestError(f"unknown optimisation {optimize!r}", f"choose one of {', '.join(_PROVIDERS)}")
    if opset is not None and opset not in _OPSETS:
        raise RequestError(f"opset {opset} is not supported", f"choose one from {_OPSETS[0]} to {_OPSETS[-1]}")
    needed = sum(path.stat().st_size for path in source.glob("*.safetensors"))
    check_target(out, force=force, source=source, needed=needed)


def write_program(program: ir.Model, source: Path, model: Module, staging: Path, *, place: Layout, dtype: str) -> None:
    """Write the graph, its weights and the small files of ``source`` into ``staging``."""
    graph = staging / place.file(dtype)
    graph.parent.mkdir(exist_ok=True)
    save_graph(program, graph, place.data(dtype))
    for path in sorted(source.iterdir()):
        kept = path.suffix in _COPIED_SUFFIXES and path.name != RECORD and not path.name.endswith(".index.json")
        if kept and path.is_file():
            shutil.copyfile(path, staging / path.name)
    config = json.loads((staging / "config.json").read_text(encoding="utf-8"))
    config.pop("torch_dtype", None)
    computed = "float16" if dtype == "float16" else "float32"
    write_json(staging / "config.json", config | {"dtype": computed} | place.config(dtype))
    generation = getattr(model, "generation_config", None)
    if generation is not None and not (staging / "generation_config.json").exists():
        generation.to_json_file(staging / "generation_config.json")


def available_provider(optimize: str) -> str:
    """The execution provider that a graph is verified on."""
    wanted = _PROVIDERS[optimize]
    return wanted if wanted in onnxruntime.get_available_providers() else "CPUExecutionProvider"
