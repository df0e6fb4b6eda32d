"""What installed packages bring by their entry points, joined with fxprune's own into one table.

A package names in its ``pyproject.toml`` what it brings; installing it is the consent to run it. Nothing registers
itself when it is imported: a table is made once, when it is first asked for, and cannot be changed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from .errors import FxpruneError, class_and_first_line

EntryT = TypeVar("EntryT")


class PluginWarning(UserWarning):
    """A plug-in is broken and was left out."""


@dataclass(frozen=True)
class Origin:
    """Where something that fxprune does not bring itself comes from.

    Attributes:
        package, version: as installed.
        place: ``module:attribute``.
    """

    package: str
    version: str
    place: str

    def __str__(self) -> str:
        return f"{self.package} {self.version} ({self.place})"


@contextmanager
def named_faults(brought: type, what: str) -> Iterator[None]:
    """Inside, what the code of an installed package raises becomes an error that names the package.

    Args:
        brought: the class whose code runs; fxprune's own raise what they raise.
        what: runs, in the words of an error: ``pass 'clip'``.

    Raises:
        FxpruneError: what it raised, with its class.
    """
    package = brought.__module__.partition(".")[0]
    try:
        yield
    except FxpruneError:
        raise
    except Exception as error:
        if package == __name__.partition(".")[0]:
            raise
        raise FxpruneError(
            f"{what} of the package {package} failed: {class_and_first_line(error)}",
            f"this is a fault of {package}: --debug shows where; report it to its authors",
        ) from error


class Table(Mapping[str, EntryT]):
    """Everything of one kind by name, fxprune's own first; it cannot be changed.

    Attributes:
        origins: the name of whatever an installed package brings -> where it comes from.
    """

    def __init__(self, entries: Mapping[str, EntryT], origins: Mapping[str, Origin]) -> None:
        self._entries = dict(entries)
        self.origins = dict(origins)

    def __getitem__(self, name: str) -> EntryT:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def joined(
    kind: str, group: str, own: Mapping[str, EntryT], read: Callable[[Any], Mapping[str, EntryT]]
) -> Table[EntryT]:
    """fxprune's own entries and those that installed packages bring under ``group``.

    A plug-in that cannot be imported, or that ``read`` refuses, is left out: a :class:`PluginWarning` names it.

    Args:
        kind: of the entries, in the words of an error: ``rule``.
        group: of the entry points: ``fxprune.rules``.
        own: fxprune's own entries.
        read: the entries in what an entry point stands for; raises ``TypeError`` or ``ValueError`` when there are none.

    Raises:
        FxpruneError: a name is brought twice; both sides are named.
    """
    entries, origins = dict(own), dict[str, Origin]()
    for origin, point in sorted(((_origin(p), p) for p in entry_points(group=group)), key=lambda pair: str(pair[0])):
        try:
            brought = read(point.load())
        except (Exception, SystemExit) as error:  # whatever somebody else's module raises
            reason = str(error).strip().partition("\n")[0]
            message = f"left out a plug-in of {group}, {origin}: {type(error).__name__}: {reason}"
            warnings.warn(message, PluginWarning, stacklevel=2)
            continue
        for name, entry in brought.items():
            if name in entries:
                raise FxpruneError(
                    f"{kind} {name!r} is brought by {origin} and by {origins.get(name, 'fxprune')}",
                    f"uninstall {origin.package}, or have its author choose another name",
                )
            entries[name], origins[name] = entry, origin
    return Table(entries, origins)


def _origin(point: EntryPoint) -> Origin:
    found = point.dist
    return Origin(found.name, found.version, point.value) if found is not None else Origin("?", "?", point.value)
