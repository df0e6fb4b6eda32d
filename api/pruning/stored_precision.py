"""Back to the precision of the files, after passes that computed in a coarser dtype."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from ...ir.plan import Plan
from ...runtime.stored_dtypes import names_in_model
from ...runtime.streaming.mapped_files import STORED_DTYPES, Checkpoint
from ...runtime.streaming.store import Store


def loses_digits(arithmetic: torch.dtype, stored: torch.dtype) -> bool:
    """Whether numbers of the files are rounded when they are converted to the dtype of the arithmetic."""
    return torch.promote_types(arithmetic, stored) != arithmetic


def any_loses_digits(arithmetic: torch.dtype, checkpoint: Checkpoint) -> bool:
    """Whether that holds of any tensor of the files."""
    return any(loses_digits(arithmetic, STORED_DTYPES[kind]) for kind in checkpoint.dtypes & STORED_DTYPES.keys())


@dataclass(frozen=True)
class StoredDtypes:
    """The dtypes of a model's tensors in its files.

    Attributes:
        dtype: of most.
        own: name of a tensor in the model -> its dtype, where the files mix several; of a tensor that is made from
            others, the one that holds the numbers of all.
    """

    dtype: torch.dtype
    own: Mapping[str, torch.dtype] = field(default_factory=dict)

    @classmethod
    def of(cls, checkpoint: Checkpoint | None, model: Any, dtype: torch.dtype) -> StoredDtypes:
        """Those of a model as it was loaded.

        Args:
            checkpoint: its files; None for a pickle.
            model: the model.
            dtype: of most.
        """
        kinds = checkpoint.dtypes & STORED_DTYPES.keys() if checkpoint is not None else set()
        if checkpoint is None or len(kinds) < 2:
            return cls(dtype)
        stored = {name: STORED_DTYPES[t.dtype] for name, t in checkpoint.tensors.items() if t.dtype in kinds}
        own: dict[str, torch.dtype] = {}
        for name, mine in names_in_model(model, stored, model.state_dict(keep_vars=True)).items():
            own[mine] = torch.promote_types(own.get(mine, stored[name]), stored[name])
        return cls(dtype, own)

    def each(self, model: Any, renamed: Mapping[str, str]) -> Iterator[tuple[torch.Tensor, torch.dtype]]:
        """The floating-point tensors of a model, each with its dtype; ``renamed``: present name -> name in the source,
        where they differ."""
        kinds: dict[int, torch.dtype] = {}
        tensors = model.state_dict(keep_vars=True)
        for name, tensor in tensors.items():  # a tied tensor is stored under one of its names
            kinds[id(tensor)] = self.own.get(renamed.get(name, name), kinds.get(id(tensor), self.dtype))
        for tensor in tensors.values():
            if tensor.is_floating_point():
                yield tensor, kinds[id(tensor)]


def rounded_as_stored(model: Any, dtypes: StoredDtypes, renamed: Mapping[str, str]) -> None:
    """Give all tensors that are stored the numbers that the files can hold; they stay in the dtype they have."""
    for tensor, dtype in dtypes.each(model, renamed):
        tensor.data = tensor.data.to(dtype).to(tensor.dtype)


def as_stored(model: Any, dtypes: StoredDtypes, renamed: Mapping[str, str]) -> None:
    """Convert all tensors that are stored to their dtype in the files, on the CPU.

    Buffers that are not stored, such as rotary tables, stay in float32: loading computes them in float32.
    """
    for tensor, dtype in dtypes.each(model, renamed):
        tensor.data = tensor.data.to(dtype)
    model.to("cpu")


def take_unchanged(model: Any, files: Store, arithmetic: torch.dtype, plan: Plan, renamed: Mapping[str, str]) -> None:
    """Replace what no pass changed by what the files hold: only the units that stay, with all their digits.

    Args:
        model: after :func:`as_stored`.
        files: the source; it is cut by the plan.
        arithmetic: the dtype that the model computed in.
        plan: what was removed, with the names of the source.
        renamed: present name -> name in the source, where they differ.
    """
    now = {renamed.get(name, name): tensor for name, tensor in model.state_dict(keep_vars=True).items()}
    files.cut(plan)
    for name, tensor in now.items():
        if name not in files:
            continue
        value = files.read(name)
        rounded = value.to(arithmetic).to(tensor.dtype)
        if value.dtype == tensor.dtype and rounded.shape == tensor.shape and torch.equal(rounded, tensor.data):
            tensor.data = value.clone()
