"""The parts of an ONNX directory that are the same for all models: the request, the files, the report.

``OUT/`` has ``model.onnx`` (the graph with very small tensors), ``model.onnx.data`` (all other weights, since protobuf
allows only 2 GB), the config, generation config and tokenizer files of the source, and ``fxprune.json`` with the
checks. In the layout of transformers.js the graph is ``onnx/model.onnx``, with the dtype in its name, and
``config.json`` tells how to read it.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any

import onnx_ir as ir
import onnxruntime
from torch.nn import Module

from ...ir.errors import RequestError
from ...runtime.consent import Consent
from ..artifact import RECORD, read_record, write_json
from ..atomic_directory import check_room, check_target
from ..copied_files import CopiedFiles, companions, copy_files
from ..replaceable import CONFIG
from ..seen import Seen
from .choices import ONNX_DTYPES, PROVIDERS, check_opset
from .layout import LAYOUTS, Layout
from .quantize import save_graph

_PACKAGES = ("fxprune", "torch", "transformers", "onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class OnnxRequest:
    """A request to export a model.

    Attributes:
        source: a Hugging Face model directory with safetensors weights.
        out: the directory to write. It appears complete or not at all.
        dtype: ``float32``, ``float16``, ``int8`` or ``int4``, see :mod:`.quantize`.
        layout: ``onnxruntime`` or ``transformers.js``, see :mod:`.layout`.
        optimize: ``cpu`` or ``cuda`` to use fused operators of that ONNX Runtime provider, ``none`` for standard ONNX
            operators only. A graph for ``cuda`` is checked on CUDA if this machine has it. Otherwise it is checked on
            the CPU, and refused if the CPU cannot run it.
        opset: version of the ONNX operator set; the default of the exporter when None.
        force: whether to replace an existing ``out`` when the new one is complete.
        seen: what ``check_target`` found before; None when it is still to be called.
        consent: what may run of ``source``; nothing when None.
    """

    source: Path
    out: Path
    _: KW_ONLY
    dtype: str = "float32"
    layout: str = "onnxruntime"
    optimize: str = "cpu"
    opset: int | None = None
    force: bool = False
    seen: Seen | None = None
    consent: Consent | None = None

    def check(self) -> None:
        """Check the options and the output directory.

        Raises:
            RequestError: an option has an unknown value, or ``out`` cannot be written.
        """
        if self.dtype not in ONNX_DTYPES:
            raise RequestError(f"unknown --dtype {self.dtype!r}", f"choose from {', '.join(ONNX_DTYPES)}")
        if self.layout not in LAYOUTS:
            raise RequestError(f"unknown --layout {self.layout!r}", f"choose from {', '.join(LAYOUTS)}")
        if self.optimize not in PROVIDERS:
            raise RequestError(f"unknown --optimize {self.optimize!r}", f"choose from {', '.join(PROVIDERS)}")
        check_opset(self.opset)
        needed = sum(path.stat().st_size for path in self.source.glob("*.safetensors"))
        if self.seen is None:
            check_target(self.out, force=self.force, source=self.source, needed=needed, export="onnx")
        else:
            check_room(self.out, needed)

    @property
    def original(self) -> Consent:
        """What may run of the source."""
        return self.consent or Consent.nothing(self.source)

    @property
    def place(self) -> Layout:
        """Names and folders of the files."""
        return LAYOUTS[self.layout]

    @property
    def file(self) -> str:
        """The file of the graph, relative to the directory."""
        return self.place.file(self.dtype)

    @property
    def data(self) -> str:
        """The file of the weights, in the folder of the graph."""
        return self.place.data(self.dtype)

    @property
    def provider(self) -> str:
        """The execution provider on which the graph is checked."""
        wanted = PROVIDERS[self.optimize]
        return wanted if wanted in onnxruntime.get_available_providers() else "CPUExecutionProvider"


@dataclass(frozen=True, kw_only=True)
class OnnxChecks:
    """How well a graph agrees with torch.

    Attributes:
        differences: check -> largest difference, see :class:`.check.Agreement` and :mod:`.forward`.
        tolerance: the limit for them.
        growth: check -> relative growth of perplexity by the rounding of weights, see :class:`.rounding.RoundingLoss`;
            empty for float32.
        growth_tolerance: the limit for it.
        greedy_tokens, greedy_equal: number of tokens compared with ``generate`` of torch, and of those that are equal;
            0 for a model that generates no text.
    """

    differences: dict[str, float]
    tolerance: float
    growth: dict[str, float] = field(default_factory=dict)
    growth_tolerance: float | None = None
    greedy_tokens: int = 0
    greedy_equal: int = 0


@dataclass(frozen=True, kw_only=True)
class OnnxReport(OnnxChecks):
    """What was exported, and how well it agrees with torch.

    Attributes:
        path: the directory.
        file: the file of the graph, relative to ``path``.
        bytes: size of the graph and its external data.
        dtype: data type of the stored weights, see :mod:`.quantize`.
        source_dtype: data type in the files of the source.
        optimize: ``cpu``, ``cuda`` or ``none``.
        opset: version of the ONNX operator set.
        provider: the execution provider of ONNX Runtime that ran the checks.
        inputs, outputs: names in the graph. ``position_ids`` is absent if the model has no such argument.
        open: names of the dynamic dimensions of the inputs, for a model that is not a causal language model.
        versions: versions of the packages that made it.
        code: name -> sha256 of the code that was copied from the source, whose user allowed it to run.
        left_out: what was not copied from the source, in words.
    """

    path: Path
    file: str
    bytes: int
    dtype: str
    source_dtype: str
    optimize: str
    opset: int
    provider: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    open: tuple[str, ...]
    versions: dict[str, str]
    code: dict[str, str] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()

    @property
    def summary(self) -> str:
        """What the graph is, and what of it was compared or may vary."""
        tokens = f"{self.greedy_equal} of {self.greedy_tokens} greedy tokens equal"
        if not self.greedy_tokens:
            tokens = f"dynamic: {', '.join(self.open).replace('_', ' ') or 'nothing'}"
        parts = (f"{self.dtype}, opset {self.opset}, optimised for {self.optimize}", tokens, *self._copied())
        return "; ".join(parts)

    def _copied(self) -> list[str]:
        return CopiedFiles(self.code, self.left_out).said()

    @property
    def measured(self) -> dict[str, dict[str, str]]:
        """Differences from torch and what rounding costs, as text."""
        differences = {name.replace("_", " "): f"{worst:.2g}" for name, worst in self.differences.items()}
        growth = {name: f"{grown:+.3%}" for name, grown in self.growth.items()}
        return {"largest logit difference": differences} | ({"perplexity by rounding": growth} if growth else {})

    def to_json(self) -> dict[str, Any]:
        """As JSON data: what ``fxprune.json`` keeps, and where it was written."""
        return {"path": str(self.path), **self.to_record()}

    def to_record(self) -> dict[str, Any]:
        """What ``fxprune.json`` keeps: no path, which is no property of the artifact."""
        fields = dataclasses.asdict(self)
        del fields["path"]
        return {"format": "onnx", **fields}


def write_program(request: OnnxRequest, program: ir.Model, model: Module, staging: Path) -> CopiedFiles:
    """Write the graph, its weights and the small files of the source into ``staging``; returns what was copied."""
    graph = staging / request.file
    graph.parent.mkdir(exist_ok=True)
    save_graph(program, graph, request.data)
    copied = copy_files([request.source / CONFIG, *companions(request.source)], staging, request.original)
    config = json.loads((staging / CONFIG).read_text(encoding="utf-8"))
    config.pop("torch_dtype", None)
    computed = "float16" if request.dtype == "float16" else "float32"
    write_json(staging / CONFIG, config | {"dtype": computed} | request.place.config(request.dtype))
    generation = getattr(model, "generation_config", None)
    if generation is not None and not (staging / "generation_config.json").exists():
        generation.to_json_file(staging / "generation_config.json")
    return copied


def write_report(
    request: OnnxRequest,
    program: ir.Model,
    staging: Path,
    checks: OnnxChecks,
    *,
    copied: CopiedFiles,
    source_dtype: str,
    open: tuple[str, ...] = (),
) -> OnnxReport:
    """Write ``fxprune.json`` into a directory that is complete otherwise, and return the report."""
    report = OnnxReport(
        **dataclasses.asdict(checks),
        path=request.out,
        file=request.file,
        bytes=sum(path.stat().st_size for path in staging.glob(f"{request.file}*")),
        dtype=request.dtype,
        source_dtype=source_dtype,
        optimize=request.optimize,
        opset=int(program.opset_imports[""]),
        provider=request.provider,
        inputs=tuple(str(value.name) for value in program.graph.inputs),
        outputs=tuple(str(value.name) for value in program.graph.outputs),
        open=open,
        versions={name: importlib.metadata.version(name) for name in _PACKAGES},
        code=copied.code,
        left_out=copied.left_out,
    )
    # The texts that the source was calibrated and trained on also hold for the export.
    made = read_record(request.source) if (request.source / RECORD).is_file() else {}
    write_json(staging / RECORD, {**report.to_record(), **{key: made[key] for key in ("texts",) if key in made}})
    return report
