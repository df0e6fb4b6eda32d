"""What a call was given, checked before any work: models, texts, paths and functions of the kinds that a call takes.

Nothing heavy is imported here: an object of torch or transformers can be there only when its library is.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeGuard

from ..ir.errors import RequestError, is_utf8

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Model: TypeAlias = "str | os.PathLike[str] | PreTrainedModel"
"""A Hugging Face model directory, a Hub id, ``demo``, or a model of transformers that is loaded already."""

GivenText: TypeAlias = "str | os.PathLike[str] | Sequence[str] | Sequence[os.PathLike[str]]"
"""A text file, a file of rows, a ``datasets`` id, or several of these as a list of ``pathlib.Path``; or the rows
themselves: a list of strings."""

GivenData: TypeAlias = "GivenText | Iterable[Mapping[str, Any]]"
"""A text; or inputs: a file or folder of them, ``package.module:function`` which yields batches, or the batches."""

MODEL_HINT = "give a model directory, a Hub id, 'demo', or a loaded model of transformers"
TEXT_HINT = "give the path of a text file, a `datasets` id, a list of strings, or a list of pathlib.Path"


CALIBRATION, RECOVERY = "calibration", "recovery"
"""What data is given for."""

NAME_BYTES = 255
"""Bytes of a name, in every usual file system."""

_FAULTS = {errno.ELOOP: "is a link that leads in a circle", errno.ENAMETOOLONG: "is too long for a path"}


@dataclass(frozen=True)
class GivenRows:
    """A text that was given as a list of strings.

    Attributes:
        name: of the argument, which stands for the text in reports and messages.
        rows: the strings; each stands for itself, as the rows of a ``.jsonl`` file do.
    """

    name: str
    rows: tuple[str, ...]


@dataclass(frozen=True)
class GivenFiles:
    """Texts that were given as a list of paths, which are read as one.

    Attributes:
        paths: as they were given: files, directories and ids.
    """

    paths: tuple[str, ...]

    @property
    def name(self) -> str:
        """What stands for all of them in reports and messages."""
        return ", ".join(Path(path).name for path in self.paths)


@dataclass(frozen=True)
class GivenBatches:
    """Data that was given as batches of inputs.

    Attributes:
        name: of the argument, which stands for the data in reports and messages.
        batches: each a mapping of argument name to tensor.
    """

    name: str
    batches: tuple[Mapping[str, Any], ...]


def is_loaded(model: object) -> bool:
    """Whether it is a model of transformers that is in memory, inside a ``PeftModel`` or not."""
    inside: Any = model
    if _is(model, "peft.peft_model", "PeftModel"):
        inside = inside.get_base_model()
    return _is(inside, "transformers.modeling_utils", "PreTrainedModel")


def is_path(value: object) -> TypeGuard[str | os.PathLike[str]]:
    """Whether it is text or a path."""
    return isinstance(value, str | os.PathLike)


def path_fault(path: str | os.PathLike[str]) -> str:
    """Why nothing can be at a path, as the end of a sentence; "" where something may be."""
    if not os.fspath(path):
        return "is empty, which no path is"
    if "\0" in os.fspath(path):
        return "holds a NUL character, which no path can"
    try:
        place = Path(path).expanduser()
    except RuntimeError:
        return "begins with the home of a user whom this system does not know"
    if any(len(os.fsencode(part)) > NAME_BYTES for part in place.parts):
        return f"holds a name of more than {NAME_BYTES} bytes, which is too long"
    try:
        place.stat()
    except OSError as error:
        return _FAULTS.get(error.errno or 0, "")
    return ""


def exists(path: str) -> bool | None:
    """Whether something is at a path; None where no path can be called so."""
    try:
        return None if path_fault(path) else Path(path).expanduser().exists()
    except OSError:  # may not be looked at
        return None


def check_model(model: object, tokenizer: object = None, *, merge_adapter: bool = False) -> None:
    """Refuse what is no model of a call that takes Hugging Face models.

    Args:
        model: as it was given.
        tokenizer: of a loaded model.
        merge_adapter: whether a model in a ``PeftModel`` is one.

    Raises:
        RequestError: naming what it is, and what to do with that.
    """
    if is_path(model) and tokenizer is not None:
        raise RequestError("tokenizer= belongs to a loaded model", f"leave it out: {model} brings its own")
    if tokenizer is not None and not _is(tokenizer, "transformers.tokenization_utils_base", "PreTrainedTokenizerBase"):
        raise RequestError(
            f"tokenizer is {_kind(tokenizer)}, not a tokenizer of transformers",
            "give what AutoTokenizer.from_pretrained returns",
        )
    if is_path(model):
        name = os.fspath(model)
        if exists(name) is None:
            why = f", which {fault}" if (fault := path_fault(name)) else ""
            raise RequestError(f"no model can have this name: {name[:60]!r}{why}", MODEL_HINT)
        return
    wrapped = _is(model, "peft.peft_model", "PeftModel")
    if is_loaded(model) and (merge_adapter or not wrapped):
        return
    hint = MODEL_HINT
    if wrapped:
        hint = "merge its adapters into it first: model.merge_and_unload(); or pass merge_adapter=True"
    elif _is(model, "torch.nn", "Module"):
        hint = "prune it with fxprune.prune_module(module, example_inputs, passes); the command line also traces and "
        hint += "analyzes a module, by its name package.module:callable"
    raise RequestError(f"{_kind(model)} is not a Hugging Face model", hint)


def list_models(models: object, tokenizer: object = None, *, merge_adapter: bool = False) -> list[Any]:
    """One model or several, each checked.

    Args:
        models: as the user gave them.
        tokenizer: of the loaded ones among them.
        merge_adapter: as in :func:`check_model`.

    Raises:
        RequestError: what is no model, or a tokenizer without a loaded model.
    """
    several = isinstance(models, list | tuple)
    found: list[Any] = list(models) if isinstance(models, list | tuple) else [models]
    loaded = any(map(is_loaded, found))
    for model in found:
        own = tokenizer if is_loaded(model) or not (several and loaded) else None
        check_model(model, own, merge_adapter=merge_adapter)
    return found


def read_text(text: object, name: str) -> str | GivenRows | GivenFiles | None:
    """A text as it was given: the path or id of it, or its rows.

    Args:
        text: a path, an id, a sequence of strings or one of paths, or None.
        name: of the argument.

    Raises:
        RequestError: anything else, a list without strings or with something else in it, or a text where a path
            belongs.
    """
    if text is None:
        return None
    if is_path(text):
        return _path_of_text(os.fspath(text), name)
    if not isinstance(text, Sequence) or isinstance(text, bytes | bytearray):
        raise RequestError(f"{name} cannot be {_kind(text)}", TEXT_HINT)
    rows = tuple(text)
    if rows and all(isinstance(row, os.PathLike) for row in rows):
        paths = [_path_of_text(os.fspath(row), f"{name}[{index}]") for index, row in enumerate(rows)]
        return paths[0] if len(paths) == 1 else GivenFiles(tuple(paths))
    for index, row in enumerate(rows):
        if not isinstance(row, str):
            raise RequestError(f"{name}[{index}] is {_kind(row)}, not a string", TEXT_HINT)
        if not is_utf8(row):
            raise RequestError(f"{name}[{index}] holds half of a surrogate pair, which is no character", TEXT_HINT)
    if not any(row.strip() for row in rows):
        raise RequestError(f"{name} is a list without any text", "give at least one string with text in it")
    return GivenRows(name, rows)


def read_data(data: object, name: str) -> str | GivenRows | GivenFiles | GivenBatches | None:
    """Text or other inputs as they were given.

    Args:
        data: as :func:`read_text`, or batches: any iterable of mappings.
        name: of the argument.

    Raises:
        RequestError: anything else.
    """
    if data is None or is_path(data) or isinstance(data, Mapping | bytes) or not isinstance(data, Iterable):
        return read_text(data, name)
    found = list(data)
    if found and all(isinstance(batch, Mapping) for batch in found):
        return GivenBatches(name, tuple(found))
    return read_text(found if isinstance(data, Sequence) else data, name)


def paths_of(name: str, data: object) -> dict[str, object]:
    """What data is read from, as the argument that names it -> path or id; several are numbered.

    Args:
        name: of the argument.
        data: as it was given; rows and batches are in memory, and have no path.
    """
    if is_path(data):
        return {name: data}
    if isinstance(data, list | tuple) and len(data) > 0 and all(isinstance(one, os.PathLike) for one in data):
        return {f"{name} {number}".strip(): one for number, one in enumerate(data, 1)}
    return {}


def _path_of_text(text: str, name: str) -> str:
    there = exists(text)
    if there is None and len(text) <= NAME_BYTES:
        raise RequestError(f"{name}: {text!r} {path_fault(text) or 'cannot be looked at'}", TEXT_HINT)
    if there is None or (not there and "\n" in text):
        raise RequestError(
            f"{name} is a text of {len(text):,} characters, where a path or an id belongs",
            f"give the text itself as a list: {name}=[text]",
        )
    return text


def check_paths(**paths: object) -> None:
    """Refuse what is no path, or one where nothing can be; None stands for none.

    Raises:
        RequestError: naming the argument.
    """
    for name, path in paths.items():
        if path is not None and not is_path(path):
            raise RequestError(f"{name} is {_kind(path)}, not a path", "give a string or a pathlib.Path")
        if is_path(path) and (fault := path_fault(path)):
            raise RequestError(f"{name}: {os.fspath(path)[:60]!r} {fault}", "give another path")
        if is_path(path) and not is_utf8(os.path.abspath(os.fspath(path))):
            raise RequestError(f"{name}: the name {path!r} is not UTF-8", "give a path whose names are")


def check_counts(**counts: object) -> None:
    """Refuse what is no whole number; None stands for "not given"."""
    for name, count in counts.items():
        if count is not None and (not isinstance(count, int) or isinstance(count, bool)):
            raise RequestError(f"{name} is {count!r}, not a whole number", "give a number such as 8")


def check_at_least_one(**counts: int | None) -> None:
    """Refuse counts with which there is nothing to time; None stands for "not given".

    Args:
        counts: by argument, as its flag is called with ``_`` for ``-``.

    Raises:
        RequestError: with the flags and the numbers that are too small.
    """
    wrong = {"--" + name.replace("_", "-"): count for name, count in counts.items() if count is not None and count < 1}
    if wrong:
        flags = ", ".join(f"{flag} 1" for flag in wrong)
        raise RequestError(
            f"nothing to time with {', '.join(f'{flag} {count}' for flag, count in wrong.items())}",
            f"give {flags} or more",
        )


def check_example(example: object) -> None:
    """Refuse inputs that are no text.

    Raises:
        RequestError: with the form that is read.
    """
    if example is not None and not isinstance(example, str):
        raise RequestError(
            f"example is {_kind(example)}, not text",
            "write the inputs of the model as 'pixel_values=float32[2,3,224,224]'",
        )


def check_loss(loss: object, *, named: bool) -> None:
    """Refuse a loss that cannot be called.

    Args:
        loss: as it was given; None for none.
        named: whether a name of a function will do.

    Raises:
        RequestError: for anything else.
    """
    if loss is not None and not callable(loss) and not (named and isinstance(loss, str)):
        raise RequestError(
            f"loss is {_kind(loss)}, not a function", "give a function that takes the module and returns a scalar"
        )


def check_module(module: object) -> None:
    """Refuse what is no module.

    Raises:
        RequestError: naming what it is.
    """
    if not _is(module, "torch.nn", "Module"):
        hint = "give an instance of a torch.nn.Module"
        if is_path(module):
            hint = "a Hugging Face model is pruned with fxprune.apply(model, passes, out=...)"
        raise RequestError(f"{_kind(module)} is not a torch.nn.Module", hint)
    for path, part in module.named_modules():  # type: ignore[attr-defined]
        for name, child in part.named_children():
            if getattr(part, name, None) is not child:
                where = f"{path}.{name}" if path else name
                raise RequestError(
                    f"the submodule {where!r} of {type(module).__name__} is called as an attribute of every "
                    "torch.nn.Module, so that torch itself cannot reach it",
                    f"give it another name than {name!r}",
                )


def list_batches(batches: object, name: str) -> list[Any]:
    """The batches that a loss is computed on.

    Raises:
        RequestError: none at all, or something that holds no batches.
    """
    if not isinstance(batches, Iterable) or is_path(batches):
        raise RequestError(f"{name} is {_kind(batches)}, not a list of batches", "give a list of batches for the loss")
    found = list(batches)
    if not found:
        raise RequestError(f"{name} holds no batch", "give at least one batch")
    return found


def _kind(value: object) -> str:
    """What a value is, in words: ``the class Linear``, ``None``, ``an int``."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if value is None:
        return "None"
    if isinstance(value, str):
        return repr(value) if len(value) < 80 else "a text"
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiouAEIO' else 'a'} {name}"


def _is(value: object, module: str, name: str) -> bool:
    """Whether it is an instance of a class of a library, without importing the library."""
    found = sys.modules.get(module)
    return found is not None and isinstance(value, getattr(found, name))
