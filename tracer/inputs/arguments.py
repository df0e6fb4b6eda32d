"""What a model can be called with."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from ...ir.errors import RequestError
from ...runtime.model.kinds import is_pretrained


@dataclass(frozen=True)
class Arguments:
    """The arguments of a forward.

    Attributes:
        owner: class of the model, for messages.
        names: those that it names, in order.
        required: those without a default.
        any: whether it takes others too (``**kwargs``). Models of transformers have such arguments for options alone.
    """

    owner: str
    names: tuple[str, ...]
    required: frozenset[str]
    any: bool

    @classmethod
    def of(cls, model: nn.Module) -> Arguments:
        """Those of a model, on any device."""
        named, others = [], False
        for parameter in inspect.signature(model.forward).parameters.values():
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                others = True
            elif parameter.kind is not inspect.Parameter.VAR_POSITIONAL:
                named.append(parameter)
        required = frozenset(one.name for one in named if one.default is inspect.Parameter.empty)
        return cls(
            type(model).__name__, tuple(one.name for one in named), required, others and not is_pretrained(model)
        )

    def takes(self, name: str) -> bool:
        """Whether it names an argument."""
        return name in self.names

    def check(self, given: Iterable[str], where: str) -> None:
        """Refuse arguments that it does not take, and a call without those that it needs.

        Args:
            given: names of the arguments.
            where: what holds them, for the message.

        Raises:
            RequestError: naming the argument.
        """
        given = list(given)
        unknown = [name for name in given if name not in self.names]
        if unknown and not self.any:
            raise RequestError(
                f"{where} holds {unknown[0]!r}, which {self.owner} does not take", f"use {', '.join(self.names)}"
            )
        missing = [name for name in self.names if name in self.required and name not in given]
        if missing:
            raise RequestError(
                f"{where} holds no {missing[0]!r}, which {self.owner} needs; it holds {', '.join(given) or 'nothing'}",
                "give a tensor for every argument that has no default",
            )
