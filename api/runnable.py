"""Models of any format, ready to be measured."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..ir.cost import macs
from ..ir.errors import FxpruneError, RequestError, class_and_first_line
from ..ir.graph import Graph
from ..passes.model.blocks import read_elsewhere
from ..passes.model.measure import Step
from ..runtime.model.keywords import caching
from ..runtime.place.memory import is_out_of_memory
from ..runtime.place.placement import NO_OFFLOAD, Placement, PlacementRequest, told_when_out_of_memory, whole
from ..runtime.streaming.block_runner import BlockRunner
from ..runtime.streaming.store import Scratch
from ..runtime.tensors import twin
from ..tracer.checkpoint import weight_files
from ..tracer.export import Traced, trace_model
from ..tracer.model import ModelSource, build_meta, load_config, load_model, predicts_next_token, reads_images
from .offloading import Files, find_files, residence_of
from .placing import Forward, checkpoint_of, place_model, stored_dtype
from .progress import Progress

ONNX_MODEL = "model.onnx"


@dataclass(frozen=True)
class Runnable:
    """A model of any format, ready to be measured.

    Attributes:
        module: the module that its config describes, with or without weights, to count parameters and MACs.
        logits: a function from token ids to logits, or what runs the module.
        step: what decodes token by token, with a key-value cache, or what runs the module.
        format: ``safetensors``, ``pickle`` or ``onnx``.
        bytes: size of the weight files.
        placement: where it runs; None for ONNX Runtime.
        graph: the traced module, where it was needed.
    """

    module: torch.nn.Module
    logits: Callable[..., Any] | BlockRunner
    step: Step | BlockRunner
    format: str
    bytes: int
    placement: Placement | None = None
    graph: Graph | None = None

    @property
    def offloaded(self) -> bool:
        """Whether weights are brought into memory block by block."""
        return self.placement is not None and self.placement.offload != NO_OFFLOAD

    def macs(self, window: int) -> int:
        """Multiply-accumulates for one sequence of ``window`` tokens."""
        return macs(_trace(self.module, window).graph if self.graph is None else self.graph)


def is_onnx(directory: str | os.PathLike[str]) -> bool:
    """Whether a directory holds an ONNX model."""
    return (Path(directory) / ONNX_MODEL).is_file()


def require_language(source: ModelSource, lacks: str, hint: str) -> None:
    """Check that a model writes text, token by token.

    Args:
        source: the model.
        lacks: what a model that does not lacks, as the end of a sentence.
        hint: what to do with such a model.

    Raises:
        RequestError: it does not; the message gives its class.
    """
    config = load_config(source)
    if predicts_next_token(config) or reads_images(config):
        return
    name = (config.architectures or [config.model_type])[0]
    raise RequestError(f"{source.name!r} is a {name}, which is no causal language model: {lacks}", hint)


def require_tokens(source: ModelSource) -> None:
    """The same, where the time that tokens take is measured."""
    require_language(
        source,
        "it writes no tokens to time",
        "`apply` says how many multiply-accumulates are left; time a call of the model, or of its ONNX graph, in a "
        "program of your own",
    )


def open_torch(
    source: ModelSource,
    request: PlacementRequest,
    forward: Forward,
    progress: Progress,
    *,
    window: int,
    scratch: Scratch | None = None,
) -> Runnable:
    """A Hugging Face model of either form, where the user wants it to run.

    Args:
        source: the model.
        request: where it shall run.
        forward: its largest forward pass.
        progress: told where it runs.
        window: tokens in the sequence for which MACs are counted.
        scratch: gives a directory for files of weights, where they must be converted; None to load them instead.

    Raises:
        RequestError: as :func:`~.placing.place_model`.
        FxpruneError: the weights do not fit the config.
    """
    placement = place_model(request, source, load_config(source), forward=forward)
    opened = _offloaded(source, placement, scratch, progress) if placement.offload != NO_OFFLOAD else ""
    graph = None
    if isinstance(opened, str):
        placement = whole(placement, opened)
        with told_when_out_of_memory(placement):
            opened = BlockRunner(_load(source, placement))
    else:
        traced = _trace(opened.model, window)
        traced.refuse_written()
        graph = traced.graph
        opened.whole.update(read_elsewhere(graph, opened.model))
    progress(f"{source.name}: {placement.why}")
    files = weight_files(source.directory, allow_pickle=source.consent.pickle)
    return Runnable(
        module=opened.model,
        logits=opened,
        step=opened,
        format="safetensors" if files[0].suffix == ".safetensors" else "pickle",
        bytes=sum(file.stat().st_size for file in files),
        placement=placement,
        graph=graph,
    )


def open_onnx(source: ModelSource, *, threads: int | None = None) -> Runnable:
    """What :func:`fxprune.export` wrote; ``threads`` of one operator, ONNX Runtime's choice when None."""
    from ..backends.onnx.runtime import OnnxDecoder

    # Counted from the config: the ONNX graph also holds constants, and stores equal weights only once.
    module = build_meta(load_config(source), consent=source.consent)
    decoder = OnnxDecoder(source.directory, threads=threads)

    def logits(input_ids: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(decoder.logits(input_ids.numpy()))

    def step(ids: torch.Tensor, cache: Any) -> tuple[torch.Tensor, Any]:
        found, after = decoder.step(ids.numpy(), decoder.empty_cache(len(ids)) if cache is None else cache)
        return torch.from_numpy(found), after

    return Runnable(
        module=module,
        logits=logits,
        step=step,
        format="onnx",
        bytes=sum(file.stat().st_size for file in source.directory.glob(f"{ONNX_MODEL}*")),
    )


def _trace(module: torch.nn.Module, window: int) -> Traced:
    device = next(module.parameters()).device
    if device.type == "meta":
        module = twin(module).to("meta")  # buffers too
    ids = torch.zeros(1, window, dtype=torch.long, device=device)
    return trace_model(module, {"input_ids": ids, **caching(module, False)})


def _offloaded(
    source: ModelSource, placement: Placement, scratch: Scratch | None, progress: Progress
) -> BlockRunner | str:
    """Runs the model with its weights elsewhere; or why all of them have to be loaded."""
    from ..backends.huggingface.load import load_without_weights

    config, checkpoint = load_config(source), checkpoint_of(source)
    if _is_free_form(source):
        module: Any = load_without_weights(source.directory)
    else:
        module = build_meta(config, consent=source.consent, buffers=True)
    dtype = stored_dtype(checkpoint, config)
    files = find_files(source, module, checkpoint, dtype, scratch=scratch, progress=progress)
    if not isinstance(files, Files):
        return files
    return BlockRunner(module, residence_of(module, files.checkpoint, placement, scratch or _nothing_is_written))


def _nothing_is_written() -> Path:
    raise AssertionError("a model that is measured does not change")


def _load(source: ModelSource, placement: Placement) -> Any:
    from ..backends.huggingface.load import load

    if _is_free_form(source):
        model = load(source.directory, dtype=placement.dtype).eval().to(placement.device)
        _check_computes(source, model)
        return model
    return load_model(source, dtype=placement.dtype, device=placement.device)


def _check_computes(source: ModelSource, model: Any) -> None:
    """Whether a model of the free form computes at all: its entry in config.json may say what fits no forward."""
    ids = torch.zeros(1, 2, dtype=torch.long, device=model.device)
    try:
        with torch.no_grad():
            model(input_ids=ids)
    except Exception as error:  # of any class: the entry is read by the model's own code
        if is_out_of_memory(error):
            raise
        raise FxpruneError(
            f"{source.name} does not compute: {class_and_first_line(error)}",
            "its 'fxprune' entry in config.json is not what fxprune wrote: get the model again, or write it again",
        ) from error


def _is_free_form(source: ModelSource) -> bool:
    """Whether it is loaded without running the modelling file in its directory."""
    from ..runtime.model.free_class import CONFIG_ENTRY

    return hasattr(load_config(source), CONFIG_ENTRY) and not source.consent.code
