"""Find the plain configuration that describes a pruned model: build candidates and compare all shapes."""

from __future__ import annotations

import copy
import itertools
import json
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from ...ir.errors import last_line
from ...runtime.quiet import quiet

MAX_BUILDS = 96
MAX_ALONGSIDE = 8

TensorShapes = Mapping[str, tuple[int, ...]]
Field = tuple[str | int, ...]
"""The path to a value in nested configuration data: keys of dicts and positions in lists."""


@dataclass(frozen=True)
class Retarget:
    """A row of ``retarget.json``: two architectures that compute the same function.

    Attributes:
        source: ``model_type`` of a config that may reject a pruned width.
        target: ``model_type`` of a config that accepts it.
        classes: model class of the source -> model class of the target.
        when: fields of the source config -> values at which the two compute the same function.
        fields: further fields for the target config: a value, or a power of a field of the source.
        dropped: fields of the source that the target does not have.
        why: the reason, for the report.
    """

    source: str
    target: str
    classes: Mapping[str, str]
    when: Mapping[str, Any]
    fields: Mapping[str, Any]
    dropped: tuple[str, ...]
    why: str

    def apply(self, config: PreTrainedConfig) -> dict[str, Any]:
        """The configuration of the target, as data."""
        data = {key: value for key, value in config.to_dict().items() if key not in self.dropped}
        fields = {
            name: data[value["field"]] ** value["power"] if isinstance(value, dict) else value
            for name, value in self.fields.items()
        }
        return {**data, **fields, "model_type": self.target}


@dataclass(frozen=True)
class ConfigMatch:
    """A plain configuration that describes the pruned model.

    Attributes:
        config: a configuration for which ``model_class`` has exactly the wanted shapes.
        model_class: a class of transformers.
        changes: dotted field -> (value before, value now).
        retarget: the change of architecture; None when it is the same.
        builds: number of models that were built on the meta device.
    """

    config: PreTrainedConfig
    model_class: type[PreTrainedModel]
    changes: Mapping[str, tuple[Any, Any]]
    retarget: Retarget | None = None
    builds: int = 0


@dataclass(eq=False)
class ConfigSearch:
    """One search over the integer fields of a configuration, best candidate first.

    Args:
        config_class: the configuration class of transformers.
        model_class: the model class, which is built on the meta device for every candidate.
        data: the configuration as data.
        shapes: the shapes that the model must have.
        retarget: the change of architecture that led to ``data``, if any.
        limit: largest number of models that are built.
        refusals: what the configuration or the class said against other values of fields that have one, and how many
            were edited.
    """

    config_class: type[PreTrainedConfig]
    model_class: type[PreTrainedModel]
    data: dict[str, Any]
    shapes: TensorShapes
    retarget: Retarget | None = None
    limit: int = MAX_BUILDS
    builds: int = 0
    refusals: list[tuple[str, int]] = field(default_factory=list)
    _built: dict[frozenset[tuple[Field, int]], TensorShapes | None] = field(default_factory=dict)

    def run(self, edits: list[tuple[Field, int]]) -> Iterator[dict[Field, int]]:
        """Small sets of edits that give the shapes, until the limit on builds is reached.

        Fields that change no shape on their own, such as a number of tokens, are left out at first.
        """
        dense = self.build({})
        effective = [(name, value) for name, value in edits if self.build({name: value}) != dense]
        for choices in (effective, edits) if len(effective) < len(edits) else (effective,):
            for chosen in self.best_first(choices):
                yield chosen
                yield from self.alongside(chosen, edits)

    def best_first(self, edits: list[tuple[Field, int]]) -> Iterator[dict[Field, int]]:
        """Sets of edits; those come first that leave the fewest tensors with a wrong shape."""
        start: dict[Field, int] = {}
        order = count()
        queue = [(self.mismatches(start, len(self.shapes)), 0, next(order), start)]
        seen = {frozenset(start.items())}
        while queue:
            missing, _, _, chosen = heappop(queue)
            if missing == 0:
                yield self.fewest(chosen)
                continue
            for name, value in edits:
                extended = {**chosen, name: value}
                key = frozenset(extended.items())
                if name in chosen or key in seen:
                    continue
                if self.builds >= self.limit:
                    return
                seen.add(key)
                heappush(queue, (self.mismatches(extended, missing), len(extended), next(order), extended))

    def alongside(self, chosen: dict[Field, int], edits: list[tuple[Field, int]]) -> Iterator[dict[Field, int]]:
        """The same set, with further edits that change no shape: 3 heads of 12 have the shapes of 4 heads of 9."""
        silent = [
            edit for edit in edits if edit[0] not in chosen and self.mismatches({**chosen, edit[0]: edit[1]}, 1) == 0
        ]
        sets = (dict(some) for size in (1, 2, 3) for some in itertools.combinations(silent, size))
        whole = (some for some in sets if self.build({**chosen, **some}) is not None)
        yield from ({**chosen, **some} for some in itertools.islice(whole, MAX_ALONGSIDE))

    def fewest(self, chosen: dict[Field, int]) -> dict[Field, int]:
        """The edits without those that change no shape."""
        for name in list(chosen):
            without = {key: value for key, value in chosen.items() if key != name}
            if self.mismatches(without, 1) == 0:
                chosen = without
        return chosen

    def mismatches(self, edits: Mapping[Field, int], otherwise: int) -> int:
        """Number of tensors with a wrong shape; ``otherwise`` when the config rejects the values."""
        built = self.build(edits)
        if built is None:
            return max(otherwise, 1)
        names = built.keys() | self.shapes.keys()
        return sum(built.get(name) != self.shapes.get(name) for name in names)

    def build(self, edits: Mapping[Field, int]) -> TensorShapes | None:
        """The shapes that some edits give; None when the config rejects them. Each model is built once."""
        key = frozenset(edits.items())
        if key not in self._built:
            self.builds += 1
            try:
                with quiet():
                    self._built[key] = built_shapes(self.model_class, self.configured(edits))
            except Exception as error:  # a config or constructor may raise any error to refuse a value
                if all(_at(self.data, path) is not None for path in edits):
                    self.refusals.append((last_line(str(error)) or type(error).__name__, len(edits)))
                self._built[key] = None
        return self._built[key]

    def match(self, edits: Mapping[Field, int], builds: int) -> ConfigMatch:
        """The match for some edits."""
        changes = _changes(self.data, edits)
        return ConfigMatch(self.configured(edits), self.model_class, changes, self.retarget, builds)

    def configured(self, edits: Mapping[Field, int]) -> PreTrainedConfig:
        """The configuration with some fields changed."""
        data = copy.deepcopy(self.data)
        for path, value in edits.items():
            inner: Any = data
            for key in path[:-1]:
                inner = inner[key]
            inner[path[-1]] = value
        return self.config_class.from_dict(data)


def find_config(
    config: PreTrainedConfig,
    model_class: type[PreTrainedModel],
    shapes: TensorShapes,
    quantities: Iterable[tuple[int, int]],
    *,
    accept: Callable[[ConfigMatch], bool] | None = None,
    limit: int = MAX_BUILDS,
    about: Collection[int] = (),
) -> tuple[ConfigMatch | None, str]:
    """Find the plain configuration whose model has exactly ``shapes``.

    First the integer fields are tried whose value equals an extent that changed, then also fields without a value, such
    as an inner width that defaults to a multiple of another. An explicit ``head_dim`` is always tried: the head size
    need no longer follow from other fields. Then come architectures that compute the same function.

    Args:
        config, model_class: the configuration of the dense model, which is not changed, and its class of transformers.
        shapes: name -> shape of every parameter and persistent buffer, tied names included.
        quantities: (old, new) of all extents in the model that changed, numbers of heads included.
        accept: called for every match, since equal shapes may compute different functions (6 heads of 8, or 8 of 6).
            The first match that it accepts is returned; the first of all when None.
        limit, about: how many models are built of each architecture; numbers that a reason should be about.

    Returns:
        The match and ""; or None and the reason why there is none, for the report.
    """
    before = built_shapes(model_class, config)
    extents = {pair for name in before.keys() & shapes.keys() for pair in zip(before[name], shapes[name], strict=False)}
    pairs = sorted({(old, new) for old, new in {*quantities, *extents} if old != new})
    if ragged := _ragged(before, shapes):
        return None, f"widths differ between layers: {ragged}"
    searches = _searches(config, model_class, shapes, limit)
    rejected: list[tuple[ConfigSearch, dict[Field, int]]] = []
    for empty in (False, True):
        for search in searches:
            for edits in search.run(_edits(search.data, pairs, empty=empty)):
                if (search, edits) in rejected:
                    continue
                match = search.match(edits, builds=sum(other.builds for other in searches))
                if accept is None or accept(match):
                    return match, ""
                rejected.append((search, edits))
    return None, _why_none(searches, len(rejected), [set(about), {new for _, new in pairs}])


def _searches(
    config: PreTrainedConfig, model_class: type[PreTrainedModel], shapes: TensorShapes, limit: int
) -> list[ConfigSearch]:
    """Through the configuration itself, then through those of architectures that compute the same function."""
    searches = [ConfigSearch(type(config), model_class, config.to_dict(), shapes, limit=limit)]
    for retarget in retargets():
        if _applies(retarget, config, model_class):
            partner = getattr(transformers, retarget.classes[model_class.__name__])
            searches.append(
                ConfigSearch(partner.config_class, partner, retarget.apply(config), shapes, retarget, limit)
            )
    return searches


def _why_none(searches: list[ConfigSearch], rejected: int, wanted: list[set[int]]) -> str:
    builds = sum(search.builds for search in searches)
    why = f"no value of the configuration's fields gives these shapes ({builds} models were built)"
    if rejected:
        why = f"the {rejected} configurations that give these shapes compute something else"
    refusals = [refusal for search in searches for refusal in search.refusals]
    refusal, _ = max(refusals, key=lambda said: _tells(said, wanted), default=("", 0))
    return f"{why}; {searches[0].config_class.__name__}: {refusal}" if refusal else why


def _tells(said: tuple[str, int], wanted: list[set[int]]) -> tuple[int, int, int]:
    """How well a refusal tells why the wanted extents cannot be: by how many it names of what it should be about, how
    few edits it is of, and how many it names of all."""
    text, edits = said
    numbers = set(map(int, re.findall(r"\d+", text)))
    about, of_all = (len(numbers & some) for some in wanted)
    return about, -edits, of_all


def _ragged(before: TensorShapes, after: TensorShapes) -> str:
    """An example of a tensor that had the same shape in all layers and no longer has; "" when there is none."""
    groups: dict[str, set[Any]] = defaultdict(set)
    for name in before.keys() & after.keys():
        groups[re.sub(r"\.\d+\.", ".*.", name)].add((before[name], after[name]))
    for pattern, shapes in sorted(groups.items()):
        if len({old for old, _ in shapes}) == 1 < len(shapes):
            return f"{pattern} is {' and '.join(str(list(new)) for _, new in sorted(shapes)[:2])}"
    return ""


def built_shapes(model_class: type[PreTrainedModel], config: PreTrainedConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of the model that a configuration describes; it is built on the meta device without initialisation."""
    with torch.device("meta"), no_init_weights():
        return model_shapes(model_class(copy.deepcopy(config)))


def model_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every parameter and persistent buffer, tied names included."""
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict(keep_vars=True).items()}


def retargets() -> list[Retarget]:
    """The rows of ``retarget.json``."""
    rows = json.loads((Path(__file__).parent / "retarget.json").read_text(encoding="utf-8"))
    return [
        Retarget(row["from"], row["to"], row["classes"], row["when"], row["set"], tuple(row["drop"]), row["why"])
        for row in rows
    ]


def _applies(retarget: Retarget, config: PreTrainedConfig, model_class: type[PreTrainedModel]) -> bool:
    same = all(getattr(config, name, value) == value for name, value in retarget.when.items())
    own = getattr(transformers, model_class.__name__, None) is not model_class  # it may compute anything
    return config.model_type == retarget.source and model_class.__name__ in retarget.classes and same and not own


def _edits(data: Mapping[str, Any], pairs: list[tuple[int, int]], *, empty: bool) -> list[tuple[Field, int]]:
    """Fields whose value equals a changed extent, with the new extent; with ``empty`` also fields without a value."""
    fields = list(_fields(data))
    edits = [(path, new) for path, value in fields for old, new in pairs if value == old]
    if empty:
        edits += [(path, new) for path, value in fields if value is None for new in sorted({new for _, new in pairs})]
    return [*edits, *_head_size(data)]


def _head_size(data: Mapping[str, Any]) -> list[tuple[Field, int]]:
    """The head size of the source as an explicit field; it stays when the heads or the hidden size change."""
    hidden, heads = data.get("hidden_size"), data.get("num_attention_heads")
    if data.get("head_dim") or not hidden or not heads:
        return []
    return [(("head_dim",), hidden // heads)]


def _fields(data: Mapping[str, Any], path: Field = ()) -> Iterator[tuple[Field, int | None]]:
    """Integer and empty fields, also in nested configurations and lists."""
    for name, value in data.items():
        if isinstance(value, dict):
            yield from _fields(value, (*path, name))
        elif isinstance(value, list) and value and all(type(item) is int for item in value):
            yield from (((*path, name, position), item) for position, item in enumerate(value))
        elif value is None or (isinstance(value, int) and not isinstance(value, bool)):
            yield (*path, name), value


def _changes(data: Mapping[str, Any], found: Mapping[Field, int]) -> dict[str, tuple[Any, Any]]:
    return {".".join(map(str, path)): (_at(data, path), new) for path, new in sorted(found.items())}


def _at(data: Any, path: Field) -> Any:
    """The value at a path; None where there is none."""
    for key in path:
        if isinstance(data, list) and isinstance(key, int):
            data = data[key]
        else:
            data = data.get(key) if isinstance(data, dict) else None
    return data
