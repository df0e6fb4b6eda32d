"""What the options of a pruning pass did otherwise than their words may suggest."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ...ir.groups import Group, Kind
from .scope import Scope
from .select import kept_count, step_of


def remarks_on(scope: Scope, everything: Iterable[Group], groups: Sequence[Group], multiple_of: int) -> list[str]:
    """Remarks for the user, most often none.

    Args:
        scope: which groups were asked for.
        everything: all groups of the model.
        groups: those that could be cut.
        multiple_of: what widths are multiples of.
    """
    found = []
    if scope.layers is not None:
        first, end = scope.layers
        last = max((group.layer for group in everything if group.layer is not None), default=end - 1)
        if first > last:
            found.append(f"layers={first}:{end} holds no layer: the last one is {last}")
        elif end > last + 1:
            found.append(f"layers={first}:{end} ends behind the last layer: {first}:{last + 1} was pruned")
        if any(group.kind is Kind.CHANNELS for group in groups):
            found.append("layers does not limit channels, which no layer has for its own; channels=false spares them")
    held = [group for group in groups if group.kind is Kind.EXPERTS and _held(group, scope.share)]
    if held:
        found.append(
            f"every token needs {held[0].minimum} experts: {held[0].name} keeps as many of {held[0].size}, not fewer"
        )
    rounded = [group for group in groups if step_of(group, multiple_of) > group.multiple]
    whole = [group for group in rounded if group.size <= step_of(group, multiple_of)]
    if whole:
        some = "all" if len(whole) == len(rounded) else f"{len(whole)} of {len(rounded)}"
        found.append(
            f"multiple_of={multiple_of} leaves {some} groups that it is for whole, such as {whole[0].name} with "
            f"{whole[0].size} units"
        )
    return found


def _held(group: Group, share: float | None) -> bool:
    """Whether a share of the units would leave fewer than must stay."""
    return share is not None and kept_count(group.size, share) < group.minimum
