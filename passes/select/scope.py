"""Which groups a pruning pass may cut, and why others are left out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from ...ir import RequestError
from ...ir.groups import HEAD_KINDS, Group, Kind
from .products import one_factor
from .select import kept_count, step_of

REASONS_SHOWN = 5
"""Largest number of reasons in an error message."""


@dataclass(frozen=True)
class Scope:
    """Which groups a pruning pass may cut.

    Attributes:
        layers: range of layer indices, end exclusive; all layers when None.
        heads: ``kv`` cuts whole key-value heads with their query heads; ``query`` cuts query heads within each
            key-value head; ``auto`` the first, or where a layer has too few of them for ``share``, or cannot lose any,
            the second; ``off`` cuts no heads.
        widths: whether to cut inner widths, such as those of feed-forward layers.
        channels: whether to cut the width of the residual stream, which belongs to no layer.
        experts: whether to cut whole experts.
        ordered: whether to cut units that carry a value by their index.
        share: about how much of every group is to be removed; None when that is not known.
        values: names of the tensors of values that were turned: their channels are cut.
        both: whether their heads are cut too.
        within: a path of modules, or the end or the middle of one; groups with a tensor elsewhere stay whole. The whole
            model when None.
    """

    layers: tuple[int, int] | None = None
    heads: str = "auto"
    widths: bool = True
    channels: bool = False
    experts: bool = False
    ordered: bool = False
    share: float | None = None
    values: frozenset[str] = frozenset()
    both: bool = False
    within: str | None = None

    @property
    def kinds(self) -> frozenset[Kind]:
        of_heads = {
            "auto": {Kind.HEADS, Kind.KV_HEADS, Kind.QUERY_HEADS}, "kv": {Kind.HEADS, Kind.KV_HEADS},
            "query": {Kind.HEADS, Kind.QUERY_HEADS}, "off": set(),
        }  # fmt: skip
        return frozenset(
            of_heads[self.heads]
            | ({Kind.WIDTH} if self.widths else set())
            | ({Kind.CHANNELS} if self.channels else set())
            | ({Kind.EXPERTS} if self.experts else set())
            | ({Kind.HEAD_DIM} if self.values else set())
        )

    def holds(self, group: Group) -> bool:
        """Whether this group is in the scope, frozen or not."""
        if group.kind not in self.kinds or group.units < 2 or not self.contains(group):
            return False
        if group.kind is Kind.HEAD_DIM and not group.tensors <= self.values:
            return False
        if group.kind in HEAD_KINDS and not self.both and group.tensors & self.values:
            return False
        if group.kind is Kind.CHANNELS or self.layers is None:
            return True
        return group.layer is not None and self.layers[0] <= group.layer < self.layers[1]

    def obstacle(self, group: Group) -> str | None:
        """Why a group is not cut; None when it can be."""
        if group.frozen is None and group.ordered is not None and not self.ordered:
            return f"{group.ordered}; ordered=true prunes it all the same"
        return group.frozen

    def can_cut(self, group: Group) -> bool:
        """Whether a group is prunable, and has units enough for one to go, as far as the share is known."""
        if self.obstacle(group) is not None:
            return False
        return self.share is None or kept_count(group.size, self.share, step_of(group), group.minimum) < group.size

    def held(self, groups: Iterable[Group]) -> list[Group]:
        """The groups in the scope, frozen or not."""
        found = [group for group in groups if self.holds(group)]
        # Experts of which a router first picks groups: every group keeps as many, and the groups stay.
        outer = {g.parent.name for g in found if g.kind is Kind.EXPERTS and g.parent is not None}
        found = [group for group in found if group.name not in outer]
        if self.heads != "auto":
            return found
        kv = {group.name: group for group in found if group.kind is Kind.KV_HEADS}
        nested = {g.parent.name: g for g in found if g.kind is Kind.QUERY_HEADS and g.parent is not None}
        # A kv head goes with its query heads, so one of the two kinds is cut in a layer.
        out = {name if self._is_finer(q, kv[name]) else q.name for name, q in nested.items() if name in kv}
        return [group for group in found if group.name not in out]

    def _is_finer(self, nested: Group, group: Group) -> bool:
        return self.can_cut(nested) and not self.can_cut(group)

    def contains(self, group: Group) -> bool:
        """Whether all tensors of a group lie in the part of the model that is asked for."""
        return self.within is None or all(_lies_in(tensor, self.within) for tensor in group.tensors)


def counted_from_start(layers: tuple[int, int] | None, groups: Iterable[Group]) -> tuple[int, int] | None:
    """A range of layers whose end may be negative, as one that is not: -1 leaves out the last layer.

    Raises:
        RequestError: when no layer is left between the two ends.
    """
    if layers is None or layers[1] > 0:
        return layers
    count = 1 + max((group.layer for group in groups if group.layer is not None), default=-1)
    start, end = layers[0], count + layers[1]
    if start >= end:
        raise RequestError(
            f"layers={layers[0]}:{layers[1]} leaves no layer: the model has {count}",
            "give a range that holds one, such as 0:-1; or leave layers out",
        )
    return start, end


def _lies_in(tensor: str, part: str) -> bool:
    return f".{part}." in f".{tensor.rpartition('.')[0]}."


def chosen_groups(groups: Iterable[Group], scope: Scope) -> tuple[list[Group], list[Group]]:
    """The groups in the scope that can be cut, and those in the scope that are frozen.

    Raises:
        RequestError: when no group can be cut, with the reasons; or there is no part of the model with the name that
            is asked for.
    """
    groups = list(groups)
    if scope.within is not None:
        _check_part(groups, scope.within)
    if scope.layers is not None and groups and all(group.layer is None for group in groups):
        raise RequestError(
            f"layers={scope.layers[0]}:{scope.layers[1]} chooses nothing: no group here lies in a numbered layer",
            "leave layers out; within=PATH chooses by the path of a module, and channels=false spares shared widths",
        )
    asked = [replace(group, frozen=scope.obstacle(group)) for group in scope.held(groups)]
    free = [group for group in asked if group.frozen is None]
    frozen = [group for group in asked if group.frozen is not None]
    if not free:
        if frozen:
            reason = f"all {len(frozen)} chosen groups are frozen; {_reasons(frozen)}"
        else:
            if scope.kinds == {Kind.EXPERTS} and not any(group.kind is Kind.EXPERTS for group in groups):
                raise RequestError(
                    "nothing to remove: the model has no experts that a router picks",
                    "a dense model has heads and widths: score them with taylor, fisher or obs",
                )
            where = f" in layers {scope.layers[0]}:{scope.layers[1]}" if scope.layers else ""
            where += f" wholly within {scope.within!r}" if scope.within is not None else ""
            reason = f"there is no {' or '.join(sorted(kind.value for kind in scope.kinds)) or 'prunable'} group{where}"
        raise RequestError(f"nothing to remove: {reason}", "list the groups with `fxprune trace MODEL`")
    return one_factor(free), frozen


def _check_part(groups: Iterable[Group], part: str) -> None:
    names = {tensor for group in groups for tensor in group.tensors}
    if any(_lies_in(tensor, part) for tensor in names):
        return
    paths = {tuple(tensor.split(".")[:-1]) for tensor in names}
    parts = sorted({name for path in paths for name in path[:2] if not name.isdigit()})[:12]
    raise RequestError(f"no module of the model is called {part!r}", f"there are, among others, {', '.join(parts)}")


def _reasons(frozen: Iterable[Group]) -> str:
    """Why groups are frozen: each reason with an example, reasons with the most units first."""
    units: dict[str, int] = {}
    names: dict[str, str] = {}
    for group in frozen:
        reason = group.frozen or ""
        units[reason] = units.get(reason, 0) + group.units
        names.setdefault(reason, group.name)
    ordered = sorted(units, key=lambda reason: -units[reason])
    more = f"; and {len(ordered) - REASONS_SHOWN} more reasons" if len(ordered) > REASONS_SHOWN else ""
    return "; ".join(f"{names[reason]}: {reason}" for reason in ordered[:REASONS_SHOWN]) + more
