"""Pipelines that have a name: ``--pass best`` stands for what measured best, ``--pass paper`` for the paper's cut."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from ..ir.call_text import CallKind, OptionCall, Scanner, did_you_mean
from ..ir.options import options_of
from .base import Pass


@dataclass(frozen=True)
class NamedPipeline:
    """A pipeline that is called like a pass.

    Attributes:
        name: as pipeline text calls it.
        text: the passes that it stands for.
        uniform: the passes where all layers must get equal widths.
        help: what it is, in a line.
    """

    name: str
    text: str
    uniform: str
    help: str


NAMED_PIPELINES = (
    NamedPipeline(
        "best",
        "obs{by=global,samples=128},compensate{samples=128,damping=auto}",
        "obs{samples=128},compensate{samples=128,damping=auto}",
        "What measured best without training: remove what the rest can replace, then refit the rest (docs/quality.md).",
    ),
    NamedPipeline(
        "best_values",
        "turn{samples=128},obs{by=global,values=true,samples=128},compensate{samples=128,damping=auto}",
        "obs{samples=128},compensate{samples=128,damping=auto}",
        "As best, with values narrower than heads too: not for llama.cpp and vLLM (docs/quality.md).",
    ),
    NamedPipeline(
        "paper",
        "taylor{variant=element1,samples=10,layers=1:-1}",
        "taylor{variant=element1,samples=10}",
        "LLM-Pruner's cut (arXiv 2305.11627, section 4.1), without its recovery; of 32 layers the paper cuts 4:30.",
    ),
)


def written_out(
    call: OptionCall, by_name: Mapping[str, type[Pass]], kind: CallKind, *, uniform: bool = False
) -> list[OptionCall]:
    """The calls that a call stands for: itself, or the passes of a named pipeline with its options.

    Args:
        call: as written. An option goes to each of the passes that has it, in place of the pipeline's own value.
        by_name: the passes there are; a name of theirs stays a pass.
        kind: what is called.
        uniform: whether all layers must get equal widths.

    Raises:
        RequestError: for a name that neither a pass nor a pipeline has.
    """
    if call.name.value in by_name:
        return [call]
    by_pipeline = {pipeline.name: pipeline for pipeline in NAMED_PIPELINES}
    named = by_pipeline.get(call.name.value)
    if named is None:
        names = [*by_name, *by_pipeline]
        raise call.name.span.error(
            f"unknown {kind.one} {call.name.value!r}",
            did_you_mean(call.name.value, names) + f"{kind.many}: {', '.join(names)}",
        )
    scanner = Scanner(named.uniform if uniform else named.text, kind)
    steps = [scanner.call()]
    while scanner.take(","):
        steps.append(scanner.call())
    known = {step: {option.name for option in options_of(by_name[step.name.value])} for step in steps}
    found = []
    for step in steps:
        # What no pass has goes to the first, which refuses it where it is written.
        own = [
            (key, value)
            for key, value in call.settings
            if key.value in known[step] or (step is steps[0] and not _any_has(known.values(), key.value))
        ]
        given = {key.value for key, _ in own}
        kept = [(key, value) for key, value in step.settings if key.value not in given]
        found.append(
            replace(step, name=replace(step.name, span=call.name.span), settings=(*kept, *own), span=call.span)
        )
    return found


def _any_has(known: Iterable[set[str]], name: str) -> bool:
    return any(name in names for names in known)
