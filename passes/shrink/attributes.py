"""Finds the integers of a module that must change with its weights, by value and by trial runs.

There are four kinds of integer attributes. Some repeat an extent of a parameter (``in_features``); the instances of the
class show which one. Some are read by the forward and equal an extent that changed: they get the new extent. Some equal
both an extent that changed and one that did not: both values are tried. All others (a layer's index, a token id) differ
from every extent in at least one instance of the class, or a trial run shows that they must stay.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from ...ir.errors import FxpruneError
from ...ir.repairs import Number, Repairs, repair
from ...runtime.tensors import tensors_by_every_name, tensors_by_name
from .dry_run import DryRun, DryRunFailure, is_integral

ModuleExtents = Mapping[str, frozenset[tuple[int, int]]]
ParameterShapes = Mapping[str, tuple[int, ...]]
Changes = dict[tuple[str, str], tuple[Number, Number]]

MAX_TRIALS = 256


@dataclass
class AttributeChoice:
    """One decision for all instances of a class that are in the same position.

    Attributes:
        options: per option, (path, attribute) -> (old, new); the most likely option comes first.
        config: whether the value is in the configuration instead of the module.
    """

    config: bool
    options: list[Changes] = field(default_factory=list)


@dataclass(frozen=True)
class Known:
    """What a run of the dense model showed.

    Attributes:
        reads: path of a module -> the integers that its forward reads.
        values: (path, attribute) -> the value that the smaller model must have there, where an operator shows it.
        likely: as ``values``, where this is only likely: it is tried first.
    """

    reads: Mapping[str, set[str]]
    values: Mapping[tuple[str, str], Number] = field(default_factory=dict)
    likely: Mapping[tuple[str, str], Number] = field(default_factory=dict)


def put(model: nn.Module, repairs: Repairs) -> Callable[[], None]:
    """Apply ``repairs``; returns a function that undoes them."""
    originals: list[tuple[nn.Module, str, Any]] = []
    for path, changes in repairs.attributes.items():
        module = model.get_submodule(path)
        for attribute, (_, new) in changes.items():
            held = attribute.split(".")[0]
            originals.append((module, held, vars(module)[held]))
            repair(module, attribute, new)

    def take_back() -> None:
        for module, held, value in reversed(originals):
            setattr(module, held, value)

    return take_back


def likely_repairs(model: nn.Module, known: Known, shapes: ParameterShapes, extents: ModuleExtents) -> Repairs:
    """The first that :func:`find_repairs` tries."""
    survey = AttributeSurvey(model, known, shapes, extents)
    settled = survey.settled()
    return _repairs({**settled, **next(_combinations(survey.choices(settled)))})


def find_repairs(
    model: nn.Module,
    dry_run: DryRun,
    shapes: ParameterShapes,
    extents: ModuleExtents,
    known: Known | None = None,
    *,
    resized: Mapping[int, int] | None = None,
    given: Mapping[tuple[str, str], Number] | None = None,
) -> Iterator[Repairs]:
    """Every set of attribute changes with which the smaller model runs as the dense model did, most likely first.

    Args:
        model: the dense model, not yet shrunk.
        dry_run: a dry run of the dense model; it is resized here.
        shapes: the new shapes of the tensors that change.
        extents, known, resized, given: as for ``shrink_module``; ``known`` has what is given.

    Raises:
        FxpruneError: when the model runs with none of them.
    """
    survey = AttributeSurvey(model, known or Known(dry_run.reads, given or {}), shapes, extents)
    settled = survey.settled()
    choices = survey.choices(settled)
    dry_run.resize(shapes)
    expected = dry_run.original and dry_run.original.resized(resized or {})
    failure: DryRunFailure | None = None
    found = False
    for changes in itertools.islice(_combinations(choices), MAX_TRIALS):
        repairs = _repairs({**settled, **changes})
        take_back = put(dry_run.model, repairs)
        result = dry_run.run()
        take_back()
        if result == expected:
            found = True
            yield repairs
        elif failure is None:
            failure = (
                result
                if isinstance(result, DryRunFailure)
                else DryRunFailure("", "other modules run, or other shapes result")
            )
    if not found and failure is not None:
        raise FxpruneError(
            f"the shrunken model does not run: {failure.path or 'its root module'}: {failure.error}",
            "a width may be fixed in the model's code; do not prune the groups of this module",
        )


class AttributeSurvey:
    """The integer attributes of a model, and what is known about each before any trial run."""

    def __init__(self, model: nn.Module, known: Known, shapes: ParameterShapes, extents: ModuleExtents) -> None:
        self.modules = dict(model.named_modules())
        self.reads, self.given, self.likely = known.reads, known.values, known.likely
        self.extents = extents
        self.before = {name: tuple(tensor.shape) for name, tensor in tensors_by_every_name(model).items()}
        self.after = dict(self.before)
        first = {id(tensor): name for name, tensor in tensors_by_name(model).items()}
        for name, tensor in tensors_by_every_name(model).items():
            self.after[name] = shapes.get(first[id(tensor)], self.before[name])
        self.instances: dict[type, list[str]] = defaultdict(list)
        for path, module in self.modules.items():
            self.instances[type(module)].append(path)
        self._known: dict[tuple[type, str, int], set[tuple[str, int | None]]] = {}
        self._widths: dict[tuple[type, str], bool] = {}

    def settled(self) -> Changes:
        """Attributes whose new value is known without a trial run."""
        changes: Changes = {}
        for path, module in self.modules.items():
            for attribute, old in _integers(module):
                if (path, attribute) in self.given:
                    changes[path, attribute] = (old, self.given[path, attribute])
                    continue
                new = self._restated(path, attribute, depth=0)
                if new is None and attribute not in self.reads.get(path, ()):
                    new = self._restated(path, attribute, depth=1) or self._followed(path, attribute, old)
                if new is not None and not self._doubtful(path, attribute, old, new):
                    changes[path, attribute] = (old, new)
        return changes

    def choices(self, settled: Changes) -> list[AttributeChoice]:
        """Attributes and configuration fields that a forward reads and that need a trial run."""
        choices: dict[Any, AttributeChoice] = {}
        for path, module in self.modules.items():
            for attribute in sorted(self.reads.get(path, ())):
                config = "." in attribute
                old = _value(module, attribute)
                if (path, attribute) in settled or old is None:
                    continue
                options = self._options(path, old)
                restated = None if config else self._restated(path, attribute, depth=0)
                if restated is not None:
                    options = [restated, *(option for option in options if option != restated)]
                if len(options) < 2 or not (config or restated is not None or self._is_width(path, attribute)):
                    continue
                first = old if config else self.likely.get((path, attribute), options[0])
                options.sort(key=lambda option: option != first)
                key = (type(module), attribute, old, options[0] == old, len(options))
                choice = choices.setdefault(key, AttributeChoice(config, [{} for _ in options]))
                for changes, new in zip(choice.options, options, strict=True):
                    changes[path, attribute] = (old, new)
        return list(choices.values())

    def _doubtful(self, path: str, attribute: str, old: Number, new: Number) -> bool:
        """Whether a forward reads the attribute and may mean another extent with the same value.

        Never for the shapes that modules of ``torch.nn`` hold: these always describe their own parameters. Their
        single integers may count something else, such as layers.
        """
        standard = type(self.modules[path]).__module__.startswith("torch.nn.")
        if attribute not in self.reads.get(path, ()) or (standard and isinstance(old, tuple)):
            return False
        return any(option != new for option in self._options(path, old))

    def _restated(self, path: str, attribute: str, depth: int) -> Number | None:
        """The new value, if the attribute equals the same parameter extent in every instance of its class."""
        prefix = f"{path}." if path else ""
        news = set()
        for name, dim in self._places(type(self.modules[path]), attribute, depth):
            shape = self.after[prefix + name]
            news.add(shape if dim is None else shape[dim])
        return news.pop() if len(news) == 1 else None

    def _places(self, kind: type, attribute: str, depth: int) -> set[tuple[str, int | None]]:
        """Places with the attribute's value in every instance: (relative tensor name, dimension; None for all)."""
        key = (kind, attribute, depth)
        if key not in self._known:
            places: set[tuple[str, int | None]] | None = None
            for path in self.instances[kind]:
                value = _value(self.modules[path], attribute)
                owned = self._owned(path, depth)
                if isinstance(value, tuple):
                    found: set[tuple[str, int | None]] = {(name, None) for name, shape in owned if shape == value}
                else:
                    found = {(name, dim) for name, shape in owned for dim, n in enumerate(shape) if n == value}
                places = found if places is None else places & found
            self._known[key] = places or set()
        return self._known[key]

    def _owned(self, path: str, depth: int) -> list[tuple[str, tuple[int, ...]]]:
        """Relative name and shape of a module's own tensors; at depth 1 also of its direct children's, and of those
        that it computes its own from."""
        module = self.modules[path]
        owners = [("", module), *((f"{name}.", child) for name, child in module.named_children() if depth)]
        if depth and is_parametrized(module):
            kept = "parametrizations."
            owners += [(kept + f"{name}.", child) for name, child in module.get_submodule(kept[:-1]).named_children()]
        return [
            (prefix + name, tuple(tensor.shape))
            for prefix, owner in owners
            for name, tensor in (*owner.named_parameters(recurse=False), *owner.named_buffers(recurse=False))
        ]

    def _followed(self, path: str, attribute: str, old: Number) -> Number | None:
        """The new value of an attribute that no forward read, when several instances agree on it."""
        options = self._options(path, old)
        several = len(self.instances[type(self.modules[path])]) > 1
        return options[0] if several and self._is_width(path, attribute) else None

    def _is_width(self, path: str, attribute: str) -> bool:
        """Whether the attribute equals an extent in every instance that reads it; a layer's index does not.

        1 always counts as an extent: an ordinary convolution has one group.
        """
        key = (type(self.modules[path]), attribute)
        if key not in self._widths:
            peers = [peer for peer in self.instances[key[0]] if peer in self.extents]
            # If only some instances read it (a shortcut that pads in the first block only), only those count.
            peers = [peer for peer in peers if attribute in self.reads.get(peer, ())] or peers
            self._widths[key] = bool(peers) and all(self._equals_extent(peer, attribute) for peer in peers)
        return self._widths[key]

    def _equals_extent(self, path: str, attribute: str) -> bool:
        value = _value(self.modules[path], attribute)
        sizes = value if isinstance(value, tuple) else (value,)
        return value is not None and set(sizes) <= {1, *(old for old, _ in self.extents[path])}

    def _options(self, path: str, old: Number) -> list[Number]:
        """The possible new values, most likely first; one entry when the value cannot change."""
        if isinstance(old, tuple):
            columns = [self._options(path, size) for size in old]
            new = tuple(int(column[0]) for column in columns if isinstance(column[0], int))
            return [new, old] if new != old else [old]
        pairs = self.extents.get(path, frozenset())
        news = sorted(new for before, new in pairs if before == old and new != old)
        stays = (old, old) in pairs or len(news) != 1
        return [old, *news] if stays else [*news, old]


def _combinations(choices: list[AttributeChoice]) -> Iterator[Changes]:
    """All combinations of options: few changes from the most likely options first, configuration fields last.

    At first every configuration field keeps its value: most fields that a forward reads count layers or tokens.
    """
    fields = [choice for choice in choices if choice.config]
    attributes = [choice for choice in choices if not choice.config]
    for changed in range(len(fields) + 1):
        for departures in range(len(attributes) + 1):
            for some in itertools.combinations(fields, changed):
                for others in itertools.combinations(attributes, departures):
                    yield from _departing(attributes, [*some, *others])


def _departing(attributes: list[AttributeChoice], departing: list[AttributeChoice]) -> Iterator[Changes]:
    usual: Changes = {}
    for choice in attributes:
        usual.update(choice.options[0])
    for options in itertools.product(*(choice.options[1:] for choice in departing)):
        changes = dict(usual)
        for option in options:
            changes.update(option)
        yield changes


def _repairs(changes: Changes) -> Repairs:
    attributes: dict[str, dict[str, tuple[Number, Number]]] = defaultdict(dict)
    for (path, attribute), (old, new) in sorted(changes.items()):
        if old != new:
            attributes[path][attribute] = (old, new)
    return Repairs(dict(attributes))


def _integers(module: nn.Module) -> Iterator[tuple[str, Number]]:
    return ((name, value) for name, value in list(vars(module).items()) if is_integral(value))


def _value(module: nn.Module, attribute: str) -> Number | None:
    owner, _, name = attribute.rpartition(".")
    value = getattr(vars(module).get(owner), name, None) if owner else vars(module).get(name)
    return value if is_integral(value) else None
