"""A model directory with an adapter, as a directory without: a copy of its files with the adapter in the weights."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ...backends.huggingface.load import load, load_without_weights
from ...backends.huggingface.streamed_weights import obstacle, stored_tensors
from ...ir.errors import RequestError, first_line
from ...ir.extras import require
from ...runtime.adapter_files import ADAPTER_FILES, ADAPTER_PICKLE, ADAPTER_WEIGHTS, AdapterFiles
from ...runtime.model.free_class import CONFIG_ENTRY
from ...runtime.scratch import ScratchDirectory
from ...runtime.streaming.mapped_files import STORED_DTYPES, Checkpoint, StoredTensor, require_whole
from ...tracer.checkpoint import INDEX_FILE, check_safetensors, weight_files
from ...tracer.model import ModelSource, build_meta, load_config, load_model
from ..placing import stored_dtype
from ..progress import Progress
from .kinds import check_kind
from .layers import MERGE_IT, ReadParameter, hollow, merged_values, put, refuse_shared, shared_names

_WEIGHT_ENDS = (
    ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".gguf", ".onnx", ".onnx_data",
    ".safetensors.index.json", ".bin.index.json",
)  # fmt: skip
"""How the names of files with weights end. Of these only those that the model is loaded from are copied."""


@contextmanager
def merged_source(
    source: ModelSource, adapter: AdapterFiles, *, weights: bool, progress: Progress
) -> Iterator[ModelSource]:
    """A source without adapter that computes what this one computes with it.

    The weights are copied to the temporary directory, which takes as much room as they do, and the layers that the
    adapter changes are merged there, one at a time: a layer is in memory, not the model. Where transformers renames,
    splits or merges tensors when it loads them, all of them are loaded instead.

    Args:
        source: a model directory with an adapter.
        adapter: the adapter.
        weights: whether its weights are wanted; without them a merged model does not differ.
        progress: told what is being merged.

    Raises:
        RequestError: the adapter is of a kind that cannot be merged, its values are a pickle and that is not allowed,
            it does not belong to the model, or there is no room on the disk.
        FxpruneError: PEFT cannot merge it.
    """
    require("--merge-adapter", "peft")
    check_kind(adapter)
    if not weights:
        yield source
        return
    _check_values(adapter, source)
    files = weight_files(source.directory, allow_pickle=source.consent.pickle)
    with ScratchDirectory("fxprune-merged-") as place:
        origin = source.directory.resolve()
        copied = place / origin.name
        _check_room(place, files, source.name)
        progress(f"merging {adapter} into a copy of {source.name}")
        _copy(origin, copied, files)
        base = replace(source, directory=copied, consent=source.consent.for_copy(copied), unmerged=source.directory)
        _merge(base, adapter, progress)
        yield base


def _check_values(adapter: AdapterFiles, source: ModelSource) -> None:
    """Refuse an adapter whose values cannot be read, or only by what can run code."""
    folder = adapter.directory
    if (folder / ADAPTER_WEIGHTS).is_file():
        check_safetensors(folder / ADAPTER_WEIGHTS)
    elif not (folder / ADAPTER_PICKLE).is_file():
        raise RequestError(f"{folder} holds {adapter}, but no {ADAPTER_WEIGHTS}", "copy or download the adapter again")
    elif not source.consent.pickle:
        raise RequestError(
            f"{folder / ADAPTER_PICKLE} is a pickle, which can run any code when it is loaded",
            "convert it to safetensors, or pass --allow-pickle to apply, eval or bench if you trust its source",
        )


def _check_room(place: Path, files: Sequence[Path], name: str) -> None:
    size, free = sum(file.stat().st_size for file in files), shutil.disk_usage(place).free
    if size > free:
        raise RequestError(
            f"{place.parent} has {free / 1e9:.2f} GB free, and a merged copy of {name} takes {size / 1e9:.2f} GB",
            "set TMPDIR to a directory with more room, or merge the adapter with PEFT and give the result",
        )


def _copy(origin: Path, copied: Path, files: Sequence[Path]) -> None:
    """Copy the files that a model is loaded from, without its adapter."""
    copied.mkdir()
    wanted = {file.name for file in files}
    if files[0].suffix == ".safetensors":
        wanted.add(INDEX_FILE)
    elif files[0].suffix == ".json":  # the index of a pickle in several files
        wanted |= {path.name for path in origin.glob("*.bin")}
    for path in sorted(origin.iterdir()):
        weights = path.name.endswith(_WEIGHT_ENDS)
        if path.name in ADAPTER_FILES or not path.is_file():
            continue
        if path.name in wanted if weights else _belongs(path, origin):
            shutil.copyfile(path, copied / path.name)


def _belongs(path: Path, origin: Path) -> bool:
    """Whether a file lies in the model's directory, or is a link within the Hub's cache of it."""
    within = origin.parent.parent if origin.parent.name == "snapshots" else origin
    return path.resolve().is_relative_to(within)


def _pickled(path: Path, files: Sequence[Path]) -> bool:
    """Whether it is a part of a pickle in several files, of which the index is listed alone."""
    return files[0].name.endswith(".bin.index.json") and path.name.endswith(".bin")


def _merge(base: ModelSource, adapter: AdapterFiles, progress: Progress) -> None:
    config = load_config(base)
    files = weight_files(base.directory, allow_pickle=base.consent.pickle)
    checkpoint = Checkpoint(files) if files[0].suffix == ".safetensors" else None
    own = hasattr(config, CONFIG_ENTRY) and not base.consent.code  # of fxprune's: its code need not run
    if own:
        module: Any = load_without_weights(base.directory)
    else:
        module = build_meta(config, consent=base.consent, buffers=True)
    why = "its files are not safetensors" if checkpoint is None else obstacle(checkpoint, module)
    if checkpoint is not None and not why:
        _merge_in_files(module, adapter, stored_tensors(checkpoint, module))
        return
    progress(f"all weights of {base.name} are loaded to merge the adapter: {why}")
    dtype = stored_dtype(checkpoint, config)
    module = load(base.directory, dtype=dtype).eval() if own else load_model(base, dtype=dtype)
    for _ in _with_adapter(module, adapter, None):
        pass
    _save(module, base.directory)


def _merge_in_files(module: Any, adapter: AdapterFiles, stored: dict[str, StoredTensor]) -> None:
    """Write what the adapter changes over the values in the copied files: shapes and dtypes stay."""
    empty = {id(parameter): hollow(parameter) for parameter in module.parameters()}
    first: dict[int, str] = {}
    for name, parameter in list(module.named_parameters(remove_duplicate=False)):
        put(module, name, empty[id(parameter)])
        first.setdefault(id(empty[id(parameter)]), name)

    def read(parameter: torch.nn.Parameter) -> torch.Tensor | None:
        name = first.get(id(parameter))
        return None if name is None else require_whole(stored[name], {}).to(torch.float32, copy=True)

    for name, value in _with_adapter(module, adapter, read):
        place = stored.get(name)
        if place is None or tuple(value.shape) != place.shape:
            raise RequestError(
                f"{adapter} changes {name} to the shape {list(value.shape)}, which the model does not have", MERGE_IT
            )
        data = value.detach().to(STORED_DTYPES[place.dtype]).contiguous().flatten().view(torch.uint8)
        with place.file.open("r+b") as file:
            file.seek(place.start)
            file.write(data.numpy().tobytes())


def _save(module: Any, folder: Path) -> None:
    """Put the weights of a module in the place of those in a directory; all other files stay."""
    with tempfile.TemporaryDirectory(dir=folder) as fresh:
        module.save_pretrained(fresh)
        for path in folder.iterdir():
            if path.name.endswith(_WEIGHT_ENDS):
                path.unlink()
        for path in Path(fresh).iterdir():
            if path.name.endswith(_WEIGHT_ENDS):
                path.replace(folder / path.name)


def _with_adapter(module: Any, adapter: AdapterFiles, read: ReadParameter | None) -> Iterator[tuple[str, torch.Tensor]]:
    """Put the adapter of a directory into a module, and merge it: name -> every value that has changed."""
    before = dict(module.named_parameters(remove_duplicate=False))
    shared = shared_names(before)
    _put(module, adapter)
    inside = dict(module.named_parameters(remove_duplicate=False))
    for name, value in before.items():  # weights of the model that the adapter's file brings whole
        found = inside.get(name)
        if found is not None and found is not value:
            refuse_shared(name, shared)
            yield name, found
    for name, value in merged_values(module, read):
        refuse_shared(name, shared)
        yield name, value


def _put(module: Any, adapter: AdapterFiles) -> None:
    """Put an adapter into a module, with its values.

    Raises:
        RequestError: it does not belong to the module: names or shapes differ.
    """
    from peft import PeftConfig, get_peft_model
    from peft.utils import load_peft_weights, set_peft_model_state_dict

    misfit = f"{adapter} does not fit this {type(module).__name__}", "check that the adapter belongs to this model"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what they warn of is refused below, or is about training
        try:
            told = {name: value for name, value in adapter.config.items() if name != "runtime_config"}
            config = PeftConfig.from_peft_type(**told)  # what was checked, not what the file may say by now
            config.inference_mode = True
            wrapper = get_peft_model(module, config, low_cpu_mem_usage=True)
            values = load_peft_weights(str(adapter.directory), device="cpu")
            loaded = set_peft_model_state_dict(wrapper, values, low_cpu_mem_usage=True)
        except Exception as error:  # whatever PEFT raises has no common class
            raise RequestError(f"{misfit[0]}: {first_line(error)}", misfit[1]) from error
    if loaded.unexpected_keys:
        raise RequestError(f"{misfit[0]}: it holds {loaded.unexpected_keys[0]}, and the model does not", misfit[1])
    bare = next((name for name, parameter in wrapper.named_parameters() if parameter.is_meta), None)
    if bare is not None:
        raise RequestError(f"{misfit[0]}: it holds no value for {bare}", misfit[1])
