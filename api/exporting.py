"""``export``: write a Hugging Face model in another format."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..backends.exporter import Exporter, ExportReport, ExportRequest
from ..backends.registry import parse_format
from ..backends.seen import Seen
from ..ir.errors import RequestError
from ..ir.plugins import named_faults
from ..runtime.place.choices import AUTO
from ..runtime.place.devices import find_device
from ..runtime.place.placement import PlacementRequest, whole
from ..tracer.calls import calls
from ..tracer.example import example_inputs
from ..tracer.model import ModelSource, load_config, load_model
from .model_call import ModelCall
from .places import claim, claim_file
from .placing import SMALLEST, place_model
from .progress import Progress, silent
from .request_checks import Model, check_example, check_model, check_paths
from .sources import open_source

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def export(
    model: Model,
    out: str | Path,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    format: str = "onnx",
    dtype: str | None = None,
    layout: str | None = None,
    optimize: str | None = None,
    cache: bool | None = None,
    pad: bool | None = None,
    example: str | None = None,
    device: str | torch.device = AUTO,
    offload: str = AUTO,
    max_memory: str | int | None = None,
    force: bool = False,
    trust_remote_code: bool = False,
    merge_adapter: bool = False,
    progress: Progress = silent,
) -> ExportReport:
    """Write a model in another format; what is written has been compared with the original.

    Args:
        model: as in :func:`fxprune.apply`, usually what it wrote.
        out: the directory to make, or the file for ``gguf``, complete or absent.
        format: ``onnx``, ``gguf``, or what an installed package brings; with its options: ``onnx{dtype=int8}``.
        dtype, layout, optimize, cache, pad: options of the format beside its text, of ``onnx`` here. dtype: of the
            weights: ``float32`` (its default), ``float16``, or weight-only ``int8`` and ``int4`` (docs/deploy.md).
        layout, optimize: ``onnxruntime`` or ``transformers.js``; fuse for ``cpu`` or ``cuda``, or ``none``: standard.
        cache: whether a causal language model takes and returns keys and values; without, whole sequences go in.
        pad: of ``gguf``: zeros in the place of what was removed, where llama.cpp takes no other widths.
        force: whether an earlier export of the same format at ``out`` may be replaced.
        tokenizer, example, trust_remote_code, merge_adapter, progress: as in :func:`fxprune.apply`.
        device, offload, max_memory: likewise, but only the CPU and all of the model.

    Raises:
        RequestError: an unknown format or option, a model that cannot be loaded, an ``out`` in the way.
        FxpruneError: the model cannot be exported, or the result differs.
    """
    options = {"dtype": dtype, "layout": layout, "optimize": optimize, "cache": cache, "pad": pad}
    exporter = parse_format(format, options)
    place = _on_cpu(PlacementRequest.parse(device=device, offload=offload, max_memory=max_memory))
    check_model(model, tokenizer, merge_adapter=merge_adapter)
    check_paths(out=out)
    check_example(example)
    allowed = {"trust_remote_code": trust_remote_code, "merge_adapter": merge_adapter}
    with open_source(model, tokenizer, progress=progress, **allowed) as source:
        placement = place_model(place, source, load_config(source), forward=SMALLEST)
        progress(whole(placement, "an export reads all of it").why)
        return _run(exporter, _request(exporter, source, Path(out), example, force=force, progress=progress))


def _request(
    exporter: Exporter, source: ModelSource, out: Path, example: str | None, *, force: bool, progress: Progress
) -> ExportRequest:
    """What the exporter is asked for. The weights are read when it loads the model."""
    begins = getattr(exporter, "file_begins", b"")

    def claimed(directory: Path) -> Seen:
        if begins:
            return claim_file(out, force=force, begins=begins, source=directory)
        return claim(out, force=force, source=directory, export=exporter.name)

    if source.unmerged is not None:
        claimed(source.unmerged)
    seen = claimed(source.directory)
    config = load_config(source)

    def load() -> torch.nn.Module:
        progress(f"loading {source.name}")
        return load_model(source)

    return ExportRequest(
        name=source.name,
        source=source.directory,
        out=out,
        config=config,
        causal_lm=ModelCall(config, example).language,
        load=load,
        inputs=lambda module: example_inputs(module, example),
        inner=calls()["inner"],
        seen=seen,
        force=force,
        consent=source.consent,
        progress=progress,
    )


def _run(exporter: Exporter, request: ExportRequest) -> ExportReport:
    with named_faults(type(exporter), f"format {exporter.name!r}"):
        return exporter.export(request)


def _on_cpu(request: PlacementRequest) -> PlacementRequest:
    """Refuse an accelerator: what it computes is not what the format's own program will be compared with."""
    if request.device not in (AUTO, "cpu"):
        raise RequestError(
            f"--device {find_device(request.device)}: a format is written and compared on the CPU",
            "leave --device out; --optimize cuda fuses for ONNX Runtime on that device",
        )
    return replace(request, device="cpu", dtype="float32")
