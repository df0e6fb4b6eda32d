"""Repairs: module attributes that change with the weights, as data that can be applied to a new model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Number = int | tuple[int, ...]


class ConfigView:
    """A module's view of the configuration it shares: a few fields of its own, the others the shared one's, live."""

    def __init__(self, shared: Any, own: dict[str, Any]) -> None:
        self.__dict__.update(own, _shared=shared)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "_shared" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self._shared, name)


def repair(module: Any, attribute: str, value: Any) -> None:
    """Set an attribute of ``module``; ``config.width`` gives it a view of its config in which ``width`` differs."""
    owner, _, name = attribute.rpartition(".")
    value = tuple(value) if isinstance(value, list) else value
    if owner:
        setattr(module, owner, ConfigView(getattr(module, owner), {name: value}))
    else:
        setattr(module, name, value)


def repairs_integers(module: Any, attribute: object, change: object) -> bool:
    """Whether an attribute and its (old, new), read from a file, are what :func:`repair` is for: an integer or integers
    of the module, or of the configuration that it holds, become others."""
    if not isinstance(attribute, str) or not isinstance(change, list | tuple) or len(change) != 2:
        return False
    owner, _, name = attribute.rpartition(".")
    if not name.isidentifier() or name.startswith("__") or (owner and not owner.isidentifier()):
        return False
    holder = vars(module).get(owner) if owner else module
    if owner and not (isinstance(holder, ConfigView) or hasattr(type(holder), "model_type")):
        return False
    return all(map(_is_number, (getattr(holder, name, None), *change)))


def _is_number(value: object) -> bool:
    return isinstance(value, int) or (isinstance(value, list | tuple) and all(isinstance(item, int) for item in value))


@dataclass(frozen=True)
class Repairs:
    """The attributes that changed, besides weights, when a model was shrunk in place.

    Attributes:
        attributes: module path -> attribute -> (old, new). ``config.<field>`` is a field that the module reads from its
            configuration; the module gets its own view of it.
    """

    attributes: Mapping[str, Mapping[str, tuple[Number, Number]]] = field(default_factory=dict)

    def to_json(self) -> dict[str, dict[str, list[Any]]]:
        """The repairs as JSON data: tuples become lists, keys are sorted."""
        return {
            path: {name: [_plain(old), _plain(new)] for name, (old, new) in sorted(changes.items())}
            for path, changes in sorted(self.attributes.items())
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Mapping[str, Any]]) -> Repairs:
        """The inverse of :meth:`to_json`."""
        return cls(
            {
                path: {name: (_number(old), _number(new)) for name, (old, new) in changes.items()}
                for path, changes in data.items()
            }
        )

    def then(self, later: Repairs) -> Repairs:
        """These repairs followed by ``later`` ones: old values from the first, new values from the last."""
        merged = {path: dict(changes) for path, changes in self.attributes.items()}
        for path, changes in later.attributes.items():
            mine = merged.setdefault(path, {})
            for name, (old, new) in changes.items():
                mine[name] = (mine[name][0] if name in mine else old, new)
        return Repairs(merged)


def _plain(value: Number) -> int | list[int]:
    return value if isinstance(value, int) else list(value)


def _number(value: Any) -> Number:
    return value if isinstance(value, int) else tuple(value)
