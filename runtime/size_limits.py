"""Sizes in a configuration that no model has: refused before anything of that size is made.

What a size means depends on the architecture, so modules, parameters and buffers are counted while the model is built
on the meta device, where they take no memory; and the build ends when they are too many.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from torch import nn
from torch.nn.modules import module as registration

from ..ir.errors import RequestError
from .streaming.mapped_files import Checkpoint

SIZES_HINT = "correct the sizes in config.json, or download the model again"

MOST = {
    re.compile(r"(layers?|blocks?|depths?)$"): 10_000,
    re.compile(r"(heads?|experts?|groups?|stages?|labels?|codebooks?)$"): 1_000_000,
}
"""The most that a configuration may count of something that its own code makes a list of. Models of today have hundreds
of layers and thousands of labels."""

POSITIVE = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings")
"""Sizes that no model has less than one of."""


@dataclass(frozen=True)
class SizeLimit:
    """The largest model that is built.

    Attributes:
        modules: their number.
        parameters: elements of all parameters.
        buffer: elements of one buffer.
        than: what it is compared with, for messages.
    """

    modules: int = 500_000
    parameters: int = 10**14
    buffer: int = 1 << 33
    than: str = "any known model has"

    @classmethod
    def of_files(cls, files: Iterable[Path]) -> SizeLimit:
        """That of the tensors in safetensors files."""
        return cls.of_tensors([stored.shape for stored in Checkpoint(sorted(files)).tensors.values()])

    @classmethod
    def of_tensors(cls, shapes: Sequence[tuple[int, ...]]) -> SizeLimit:
        """What tensors may belong to: far more than they are, since heads may be missing and numbers be packed."""
        tensors, elements = len(shapes), sum(map(prod, shapes))
        than = f"its weights belong to: they are {tensors:,} tensors of {elements:,} numbers"
        return cls(2_000 + 200 * tensors, 10**8 + 8 * elements, cls.buffer, than)


def check_counts(raw: Mapping[str, Any], where: object) -> None:
    """Check what the code of a configuration counts to, and sizes that must be positive.

    Args:
        raw: the data of a ``config.json``; parts of the model may have objects of their own in it.
        where: the file.

    Raises:
        RequestError: naming the entry.
    """
    for key, value in _entries(raw):
        if type(value) is not int:
            continue
        most = next((most for name, most in MOST.items() if name.search(key)), None)
        if most is not None and value > most:
            raise RequestError(f"{where}: {key!r} is {_shown(value)}, more than {most:,}", SIZES_HINT)
        if key in POSITIVE and value < 1:
            raise RequestError(f"{where}: {key!r} is {_shown(value)}, less than 1", SIZES_HINT)


def _entries(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """The values in nested data, each with its key; those of a list have the key of the list."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _entries(inner, name)
    elif isinstance(value, list):
        for inner in value:
            yield from _entries(inner, key)
    else:
        yield key, value


@contextlib.contextmanager
def limited(limit: SizeLimit) -> Iterator[None]:
    """Inside, a model is built on the meta device.

    Raises:
        RequestError: when it exceeds the limit; by then little of it has been made.
    """
    modules = parameters = 0

    def exceed(what: str) -> RequestError:
        return RequestError(f"config.json describes a model with more than {what}, more than {limit.than}", SIZES_HINT)

    def count_module(*_: Any) -> None:
        nonlocal modules
        modules += 1
        if modules > limit.modules:
            raise exceed(f"{limit.modules:,} modules")

    def count_parameter(_: nn.Module, _name: str, parameter: nn.Parameter | None) -> None:
        nonlocal parameters
        parameters += 0 if parameter is None else parameter.numel()
        if parameters > limit.parameters:
            raise exceed(f"{limit.parameters:,} parameters")

    def check_buffer(_: nn.Module, name: str, buffer: Any) -> None:
        if buffer is not None and buffer.numel() > limit.buffer:
            raise exceed(f"{limit.buffer:,} numbers in the buffer {name!r}")

    with contextlib.ExitStack() as stack:
        for handle in (
            registration.register_module_module_registration_hook(count_module),
            registration.register_module_parameter_registration_hook(count_parameter),
            registration.register_module_buffer_registration_hook(check_buffer),
        ):
            stack.callback(handle.remove)
        yield


def _shown(value: int) -> str:
    return f"{value:,}" if abs(value) < 10**20 else f"about 10^{len(str(abs(value))) - 1}"
