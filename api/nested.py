"""``apply_sizes``: several sizes of a model from one scoring, each a part of the next larger one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..backends.atomic_directory import check_target
from ..ir.errors import RequestError
from ..passes.prune import Prune
from ..passes.select.target import parse_sizes
from ..passes.sizes import NestedSizes
from .places import places_of_sizes
from .progress import Progress, silent
from .pruning.asked_passes import asked_passes
from .pruning.request import apply
from .pruning.result import Applied
from .request_checks import Model
from .stage_places import check_resume


def apply_sizes(
    model: Model,
    passes: str | Sequence[str],
    *,
    target: str,
    out: str | Path | None = None,
    progress: Progress = silent,
    **options: Any,
) -> tuple[Applied, ...]:
    """Prune a model to several sizes. The pruning pass scores it once; each size keeps a part of the units of the next
    larger one. Each is loaded, pruned, recovered, checked and written as by :func:`fxprune.apply`.

    Args:
        model: as there.
        passes: as there; one of them prunes.
        target: the sizes, the largest first: ``params=0.9,0.8,0.7``.
        out: the directories, with the measure in braces where its value goes: ``small/{params}``. May be left out in a
            dry run.
        progress: as there.
        options: all other arguments of it but ``resume``.

    Returns:
        The results, in the order of the sizes.

    Raises:
        RequestError: before any work.
        FxpruneError: a pass failed, or what was written did not pass its check; the larger sizes have been written.
    """
    targets = parse_sizes(target)
    places = places_of_sizes(out, targets)
    check_resume(bool(options.get("resume")), dry_run=bool(options.get("dry_run")), several=True)
    shared = {name: options.get(name) for name in _SHARED}
    asked = asked_passes(
        passes, options.get("plan"), {**shared, "target": targets[0]}, uniform=options.get("form") == "uniform"
    )
    pruning = [step.name for step in asked if isinstance(step, Prune)]
    if len(pruning) != 1:
        raise RequestError(
            f"several sizes are chosen by one pass that prunes, and there are {len(pruning)}: {', '.join(pruning)}",
            "leave all but one of them out",
        )
    for place in places if out is not None else ():
        check_target(Path(place or "").expanduser(), force=bool(options.get("force")))
    for name in ("calib", "data"):  # what can be read once only is kept, for the next size
        if isinstance(options.get(name), Iterator):
            options[name] = list(options[name])
    return tuple(_each(model, passes, targets, places, progress=progress, options=options))


def _each(
    model: Model,
    passes: str | Sequence[str],
    targets: Sequence[str],
    places: Sequence[str | None],
    *,
    progress: Progress,
    options: dict[str, Any],
) -> Iterator[Applied]:
    sizes = NestedSizes()
    for number, (one, place) in enumerate(zip(targets, places, strict=True), start=1):

        def told(text: str, said: str = f"{one} ({number} of {len(targets)})") -> None:
            progress(f"{said}: {text}")

        yield apply(model, passes, target=one, out=place, progress=told, sizes=sizes, **options)
        sizes.go_on()


_SHARED = ("ratio", "layers", "within", "seed", "multiple_of", "runtime", "tolerance", "channels", "train_on")
