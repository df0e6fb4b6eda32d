"""Make an ONNX graph from one call of a model, with ``transformers.exporters``. For a causal language model, the call
is chosen so that the graph works for prefill and for decoding."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
import transformers
from transformers import AutoModelForCausalLM, DynamicCache
from transformers.exporters.exporter_onnx import OnnxConfig, OnnxExporter

from ...ir.errors import FxpruneError, RequestError, class_and_first_line
from ...runtime.consent import Consent
from ...runtime.json_object import read_json_object
from ...runtime.model.free_class import free_class, known_base
from ...runtime.model.keywords import cache_argument, caching, returned_cache
from ...runtime.model_directory.pickles import pickles_read
from ...runtime.quiet import quiet
from ...runtime.streaming.left_as_found import left_as_found
from .names import BATCH_SYMBOL, PAST, SEQUENCE, rename_interface, strip_provenance

# Extents of the traced example. All differ, and none is 0 or 1, which torch.export would make constant.
_TRACE_BATCH, _SEQUENCE, _PAST = 2, 3, 5

_BOUND = re.compile(r"^ *(\w+) = Dim\('\1', max=(\d+)\)$", re.MULTILINE)
"""The suggestion of torch.export when the code of a model limits an extent."""


def load_causal_lm(consent: Consent) -> tuple[torch.nn.Module, str]:
    """The model of a directory, in float32 and evaluation mode, and the dtype in its config.

    Raises:
        RequestError: it is not a model directory, has no safetensors, is not a decoder, or brings code
            that ``consent`` does not cover and that is not fxprune's own for a class of transformers.
        FxpruneError: the files cannot be read, or weights are missing.
    """
    source = consent.directory
    config = _read_config(source)
    ours = None if consent.code else known_base(config)
    # Without this check, transformers uses the built-in class of the same model type and reads the weights wrongly.
    if config.get("auto_map") and not consent.code and ours is None:
        raise RequestError(
            f"{source} has its own modelling code: {', '.join(sorted(map(str, config['auto_map'].values())))}",
            "read that code, then add --trust-remote-code",
        )
    if config.get("is_encoder_decoder"):
        raise RequestError(f"{source} is an encoder-decoder model", "only decoders (causal language models) can export")
    if not any(source.glob("*.safetensors")):
        raise RequestError(f"{source} has no safetensors weights", "save the model with save_pretrained first")
    # The Auto class does not load some classes, such as the text part of a multimodal model; but only it loads code
    # that comes with the weights. The free form needs none: its configuration has the widths.
    named = "" if config.get("auto_map") else (config.get("architectures") or [""])[0]
    loader = free_class(ours) if ours else getattr(transformers, named, AutoModelForCausalLM)
    try:
        with quiet(), pickles_read(consent.pickle):
            model, loaded = loader.from_pretrained(
                source,
                dtype=torch.float32,
                **consent.keywords(source),
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
            )
    except FxpruneError:
        raise
    # Corrupt weights, unknown model types and errors in a model's own code may raise any exception.
    except Exception as error:
        raise FxpruneError(
            f"cannot load {source}: {innermost_line(error)}", "check that transformers loads it"
        ) from error
    if absent := sorted(loaded["missing_keys"]):
        raise FxpruneError(
            f"{source} has no weights for {', '.join(absent[:5])}", "copy or download the complete checkpoint"
        )
    return model.eval(), str(config.get("dtype") or config.get("torch_dtype") or "float32")


def trace_onnx(model: torch.nn.Module, *, optimize: str, opset: int | None) -> ir.Model:
    """Export ``model`` as one graph with dynamic batch size, sequence length and past length.

    The example has several new tokens after a non-empty past, so that neither length becomes constant. So the graph
    works for past length 0 (prefill) and for a single new token (decoding).

    Args:
        model: a transformers causal language model.
        optimize, opset: as for :func:`convert`.

    Returns:
        The graph with the names that runtimes expect, see :mod:`.names`.

    Raises:
        FxpruneError: the model caches something else than keys and values, or the exporter fails.
    """
    cache, returned = _example_cache(model)
    argument = cache_argument(model, returned)
    open_dims = {name: torch.export.Dim(name) for name in (BATCH_SYMBOL, SEQUENCE, PAST)}
    try:
        program = convert(model, *_call(model, argument, cache, open_dims), optimize=optimize, opset=opset)
    except FxpruneError as error:
        # A table of positions in the model limits the lengths: they are dynamic up to this limit.
        bounds = dict(_BOUND.findall(str(_innermost(error))))
        if not bounds or not bounds.keys() <= open_dims.keys():
            raise
        open_dims |= {name: torch.export.Dim(name, max=int(most)) for name, most in bounds.items()}
        program = convert(model, *_call(model, argument, cache, open_dims), optimize=optimize, opset=opset)
    rename_interface(program, argument=argument, returned=returned)
    return program


def _call(
    model: torch.nn.Module, argument: str, cache: DynamicCache, open_dims: Mapping[str, torch.export.Dim]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The inputs of the traced call, and their dynamic dimensions."""
    tokens = {0: open_dims[BATCH_SYMBOL], 1: open_dims[SEQUENCE]}
    inputs: dict[str, Any] = {
        "input_ids": torch.zeros(_TRACE_BATCH, _SEQUENCE, dtype=torch.int64),
        "attention_mask": torch.ones(_TRACE_BATCH, _PAST + _SEQUENCE, dtype=torch.int64),
    }
    # The total length is a sum of two lengths. torch.export cannot express this, so it has to infer it.
    shapes: dict[str, Any] = {
        "input_ids": tokens,
        "attention_mask": {0: open_dims[BATCH_SYMBOL], 1: torch.export.Dim.DYNAMIC},
    }
    if "position_ids" in inspect.signature(model.forward).parameters:
        inputs["position_ids"] = torch.arange(_PAST, _PAST + _SEQUENCE).repeat(_TRACE_BATCH, 1)
        shapes["position_ids"] = tokens
    inputs[argument] = cache
    shapes[argument] = [{0: open_dims[BATCH_SYMBOL], 2: open_dims[PAST]}] * (2 * len(cache.layers))
    return inputs, shapes


def convert(
    model: torch.nn.Module, inputs: dict[str, Any], shapes: dict[str, Any] | None, *, optimize: str, opset: int | None
) -> ir.Model:
    """One call of ``model`` as a graph, with the names that the exporter gives, and without paths of this machine.

    Args:
        model: a model of transformers.
        inputs: keyword arguments of its forward, with values.
        shapes: the dynamic dimensions of the inputs, as for ``torch.export``; None when all are fixed.
        optimize: ``cpu`` or ``cuda`` for ONNX Runtime's fused operators of that provider, ``none`` for standard ones.
        opset: version of the ONNX operator set; the default of the exporter when None.

    Raises:
        FxpruneError: the exporter fails.
    """
    config = OnnxConfig(
        dynamic=shapes is not None,
        dynamic_shapes=shapes,
        opset_version=opset,
        ort_fusions=None if optimize == "none" else optimize,
    )
    try:
        with quiet(), left_as_found(model):
            program: ir.Model = OnnxExporter().export(model, inputs, config).program
    # torch.export, torch.onnx and onnxscript raise exceptions without a common base class.
    except Exception as error:
        raise FxpruneError(
            f"{type(model).__name__} cannot be exported to ONNX: {innermost_line(error)}",
            "try `--optimize none`, or `--no-cache` for a causal language model; otherwise it cannot be exported",
        ) from error
    strip_provenance(program)
    return program


def _example_cache(model: torch.nn.Module) -> tuple[DynamicCache, str]:
    """A cache of ``_PAST`` tokens with the shapes that the model itself makes, and what the model calls it among its
    outputs. Heads may differ by layer.

    A layer with a sliding window may keep fewer tokens. Here it keeps all, and its mask hides those outside the window.
    """
    try:
        with torch.no_grad(), quiet(), left_as_found(model):
            output = model(input_ids=torch.zeros(_TRACE_BATCH, _PAST, dtype=torch.int64), **caching(model, True))
    except Exception as error:  # whatever a model's own code raises
        raise FxpruneError(
            f"{type(model).__name__} does not run on token ids [{_TRACE_BATCH}, {_PAST}]: {innermost_line(error)}",
            "a cache needs a model that takes token ids and returns keys and values; otherwise use --no-cache",
        ) from error
    returned, filled = returned_cache(output) or ("", None)
    cache = DynamicCache()
    for index, layer in enumerate(getattr(filled, "layers", [])):
        keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
        if keys is None or values is None or keys.dim() != 4 or hasattr(layer, "conv_states"):
            raise FxpruneError(
                f"layer {index} of {type(model).__name__} caches a {type(layer).__name__}, not keys and values",
                "use --no-cache; the graph then reads whole sequences",
            )
        for_key, for_value = (torch.zeros(_TRACE_BATCH, kept.shape[1], _PAST, kept.shape[3]) for kept in (keys, values))
        cache.update(for_key, for_value, index)
    if not cache.layers:
        raise FxpruneError(
            f"{type(model).__name__} returns no key-value cache",
            "set use_cache in its config, or use --no-cache; the graph then reads whole sequences",
        )
    return cache, returned


def _read_config(source: Path) -> dict[str, Any]:
    if not source.is_dir():
        raise RequestError(f"{source} is not a directory", "give a directory that save_pretrained or fxprune wrote")
    path = source / "config.json"
    if not path.is_file():
        raise RequestError(f"{source} has no config.json", "give a Hugging Face model directory")
    return read_json_object(path, "give a Hugging Face model directory")


def innermost_line(error: BaseException) -> str:
    """What the innermost error says, which is more than the exporter's summary of its own steps."""
    return class_and_first_line(_innermost(error))


def _innermost(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error
