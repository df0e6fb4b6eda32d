"""Inputs of a model in a file: ``.safetensors``, or the ``.npz`` of NumPy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ..ir.errors import RequestError, first_line

INPUT_FILES = (".safetensors", ".npz")


def is_input_file(text: str) -> bool:
    """Whether inputs are given as the name of a file."""
    return text.endswith(INPUT_FILES)


def check_input_file(text: str) -> None:
    """Refuse a name of a file that is not there.

    Raises:
        RequestError: naming it.
    """
    if is_input_file(text) and not Path(text).expanduser().is_file():
        raise RequestError(f"there is no file {text!r} with inputs of a model", "check the path")


def read_inputs(file: str | Path) -> dict[str, torch.Tensor]:
    """The inputs in a file: argument name of the forward -> tensor, on the CPU.

    Raises:
        RequestError: there is no such file, it cannot be read, or it holds nothing. Pickled objects are not read.
    """
    check_input_file(str(file))
    path = Path(file).expanduser()
    try:
        found = load_file(path) if path.suffix == ".safetensors" else _arrays(path)
    except (SafetensorError, OSError, ValueError, TypeError, EOFError) as error:
        raise RequestError(
            f"the inputs in {str(file)!r} cannot be read: {first_line(error)}",
            "write them with safetensors.torch.save_file or numpy.savez: argument name -> tensor",
        ) from error
    if not found:
        raise RequestError(f"{str(file)!r} holds no inputs", "write them as argument name -> tensor")
    return found


def _arrays(path: Path) -> dict[str, torch.Tensor]:
    with np.load(path, allow_pickle=False) as held:
        return {name: torch.from_numpy(held[name]) for name in held.files}
