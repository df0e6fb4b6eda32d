"""A data set of inputs from what the user named: a file, a folder, a ``datasets`` id or a function."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...ir.errors import RequestError
from ..input_file import is_input_file, read_inputs
from ..named_objects import has_module, is_of_working_directory, is_target
from ..texts.files import decode_file, row_suffix
from .arguments import Arguments
from .batches import inputs_of_batches, inputs_of_function
from .folder import is_media_folder, read_folder
from .input_set import DataSet
from .processed import Processors, inputs_of_records
from .records import Record, lines
from .table import read_data_set, read_row_records

TEXT_SUFFIXES = (".txt", ".text", ".md")
KINDS = (
    "give a .safetensors or .npz file of tensors by argument name, package.module:function that yields batches, a "
    "folder of images or sounds, a text file with a sample in every line, a file of rows (.jsonl, .csv, .parquet), "
    "or a `datasets` id"
)


def names_inputs(spec: str) -> bool:
    """Whether a data set is given as tensors or as a function, which any model can be called with."""
    return is_input_file(spec) or names_function(spec)


def names_function(spec: str) -> bool:
    """Whether it is ``package.module:function``: not where a data set of that name lies in the directory."""
    module = spec.partition(":")[0]
    return is_target(spec) and not Path(module).exists() and not Path(spec).exists() and has_module(module)


def open_tensors(spec: str, arguments: Arguments) -> DataSet:
    """A data set of tensors by argument name: of a file, or what a function yields.

    Raises:
        RequestError: it is neither, or does not fit the model.
    """
    if is_input_file(spec):
        found = inputs_of_batches(spec, [read_inputs(spec)], arguments)
        if not found.divided:
            raise RequestError(
                f"the first dimensions of the tensors in '{spec}' differ",
                "let the first dimension of every tensor count samples; or give package.module:function, which may "
                "yield any batches",
            )
        return found
    if names_function(spec):
        return inputs_of_function(spec, arguments)
    raise RequestError(
        f"'{spec}' is no data set for {arguments.owner}",
        "give a .safetensors or .npz file of tensors by argument name, or package.module:function that yields batches",
    )


def open_inputs(spec: str, processors: Processors) -> DataSet:
    """A data set for a model of transformers that is not a causal language model.

    Args:
        spec: as the user named it.
        processors: of the model.

    Raises:
        RequestError: it cannot be read, or the model cannot.
    """
    if names_inputs(spec):
        return open_tensors(spec, processors.arguments)
    return inputs_of_records(spec, _records(spec), processors)


def refuse_doubt(spec: str) -> None:
    """Run no file of the working directory, which may be a download, for what looks like the id of a data set too.

    Raises:
        RequestError: ``name:part``, where the directory has a module ``name``.
    """
    module = spec.partition(":")[0]
    if names_function(spec) and "." not in module and is_of_working_directory(module):
        raise RequestError(
            f"'{spec}' is the id of a data set, or a function in ./{module}: fxprune does not guess which to run",
            f"for the function, put the file into a package and give package.{module}:function; for the data set, work "
            "in another directory",
        )


def open_rows(name: str, texts: Sequence[str], processors: Processors) -> DataSet:
    """A data set of texts that are in memory.

    Raises:
        RequestError: as :func:`open_inputs`.
    """
    return inputs_of_records(name, lines(name, texts), processors)


def _records(spec: str) -> Sequence[Record]:
    path = Path(spec).expanduser()
    if row_suffix(path):
        return read_row_records(path)
    if path.suffix in TEXT_SUFFIXES:
        return lines(spec, decode_file(path).split("\n"))
    if path.is_file():
        raise RequestError(f"'{spec}' is a file of an unknown kind: {path.suffix or 'it has no suffix'}", KINDS)
    if path.is_dir() and is_media_folder(path):
        return read_folder(path)
    if path.is_absolute() and not Path(str(path).partition(":")[0]).is_dir():
        raise RequestError(f"there is no file or folder '{spec}'", KINDS)
    return read_data_set(str(path))
