"""Results as tables for a terminal."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType
from rich.text import Text

from .budgets import budgets
from .cells import Copied, amount, line, new_table
from .dropped import dropped
from .loading import loading, tokenizer_left_out
from .shares import shares
from .texts.left_out import left_out

if TYPE_CHECKING:
    from rich.table import Table

    from ...backends.exporter import ExportReport
    from ...ir.groups import Group
    from ...passes.manager import StepRecord
    from ..benchmarking.timings import BenchmarkResult
    from ..demo import Demo
    from ..evaluating.measures import Measurement
    from ..modules.named import PrunedTarget
    from ..pruning.group_change import GroupChange
    from ..pruning.request import Applied
    from ..reporting.request import Reported
    from ..tracing import Hop, Trace

REASONS_PRINTED = 3
"""The number of reasons that are shown for groups that are not prunable."""

MEASURED = ("parameters", "size", "MACs per window", "perplexity", "prefill tok/s", "decode tok/s")


FEWEST_STEPS = 20
"""Of fewer steps the losses differ by their examples, not by what was learned."""


def trace(traced: Trace, *, full: bool = False) -> list[RenderableType]:
    """A line about the graph, and a table of its groups. Equal groups of several layers share a row unless the table is
    to be ``full``."""
    graph, operators = traced.graph, traced.operators
    common = ", ".join(f"{name} {count}" for name, count in list(operators.items())[:6])
    more = ", ..." if len(operators) > 6 else ""
    head = f"{graph.name}: {traced.parameters:,} parameters, {len(graph.ops)} operators ({common}{more})"
    table = new_table("group", "kind", "units", "tensors", "state", right=("units",))
    for groups in _alike(traced.groups, full=full):
        first = groups[0]
        table.add_row(_name(groups), first.kind.value, _units(first), _members(first), _state(first))
    unknown = sorted({op.target for op in traced.coupling.unknown})
    note = [line("operators without a rule, whose axes are frozen: " + ", ".join(unknown))] if unknown else []
    return [line(head), table, *note]


def why(paths: Mapping[str, Sequence[Hop]], first: str, second: str) -> list[RenderableType]:
    """The paths from one weight to another, operator by operator: one for each group that contains both."""
    shown: list[RenderableType] = [line(f"{first} and {second} shrink together:")]
    for group, hops in paths.items():
        table = new_table("place", "axis", "operator", "module", "source line")
        for hop in hops:
            code = f"{hop.source}  {hop.code}".strip()
            table.add_row(hop.place, hop.axis, hop.operator or "", hop.module, code)
        shown += [Text(""), line(f"in {group}"), table]
    return shown


def applied(result: Applied, *, full: bool = False) -> list[RenderableType]:
    """The result of ``apply``: what was removed, and what was written; ``full``: a row for each group."""
    before, after = result.parameters
    head = f"{result.pipeline}: {before:,} parameters to {after:,} ({result.kept:.2%} kept"
    of = f" of a call with {result.call}" if result.call else ""
    head += f"; {result.macs[1] / result.macs[0]:.2%} of the MACs{of})" if result.macs[0] else ")"
    notes: list[str | Copied] = (
        []
        if result.saved
        else ["dry run: nothing was written" + (f"; skipped: {result.skipped}" if result.skipped else "")]
    )
    if result.saved is not None:
        saved = result.saved
        notes.append(f"{saved.path}: {saved.form} form, {saved.model_type}")
        notes += [f"architecture changed from {saved.retargeted}"] if saved.retargeted else []
        notes += [f"not in uniform form: {saved.why_free}"] if saved.why_free else []
        notes += saved.copied.said()
        notes += tokenizer_left_out(saved, result.call)
        notes.append(_checked(saved.checks))
        notes += [Copied("\n".join(loading(saved)))] if loading(saved) else []
        notes += result.serving
    notes += [f"no pass read --{name}: it had no effect" for name in result.unread]
    notes += [f"resumed after {result.resumed}"] if result.resumed else []
    notes += [result.placement.why] if result.placement else []
    notes += [f"{path or 'the model'} did not run block by block: {why}" for path, why in result.whole.items()]
    report = result.report
    left = [
        *dropped(report),
        *shares(report),
        *budgets(report),
        *trained(report),
        *remarks(report),
        *left_out(result.texts),
        *_not_prunable(report),
    ]
    changes = [_changes(result.groups, full=full)] if result.groups else []
    said = [note if isinstance(note, Copied) else line(note) for note in notes]
    return [line(head), *changes, *map(line, left), line(_times(result.steps)), *said]


def sizes(results: Sequence[Applied], *, full: bool = False) -> list[RenderableType]:
    """The results of several sizes, one after the other."""
    return [part for result in results for part in applied(result, full=full)]


def _checked(checks: Mapping[str, Any]) -> str:
    """The checks and their results; a check that does not apply to the model is left out."""
    done = (f"{name.replace('_', ' ')}: {_value(value)}" for name, value in checks.items() if value is not None)
    return "checked in a fresh process; " + ", ".join(done)


def trained(report: Mapping[str, Any]) -> list[str]:
    """For every pass that trained, a line: the mean loss over the first and the last tenth of the steps, and a warning
    if it has not become lower in so many steps that this says something."""
    lines = []
    for name, entry in report.items():
        losses = entry.get("loss")
        if not losses:
            continue
        share = max(1, len(losses) // 10)
        first, last = fmean(losses[:share]), fmean(losses[-share:])
        warning = (
            ""
            if last < first or len(losses) < FEWEST_STEPS
            else f"; the loss has not decreased: try a lower lr or more steps, or leave {name} out"
        )
        lines.append(f"{name}: loss {first:#.4g} to {last:#.4g} in {len(losses)} steps{warning}")
    return lines


def remarks(report: Mapping[str, Any]) -> list[str]:
    """For every pass with notes, a line: its first note and the number of further notes."""
    lines = []
    for name, entry in report.items():
        notes = entry.get("notes")
        if notes:
            lines.append(f"{name}: {notes[0]}" + (f"; {len(notes) - 1} more, see --json" if len(notes) > 1 else ""))
    return lines


def _not_prunable(report: Mapping[str, Any]) -> list[str]:
    """A line for each reason why groups are not prunable, the most frequent reason first."""
    names: dict[str, list[str]] = {}
    for entry in report.values():
        for name, reason in entry.get("frozen", {}).items():
            names.setdefault(reason, []).append(name)
    ordered = sorted(names.items(), key=lambda item: -len(item[1]))
    lines = [
        f"not prunable: {held[0]}{f' and {len(held) - 1} more' if len(held) > 1 else ''}: {reason}"
        for reason, held in ordered[:REASONS_PRINTED]
    ]
    more = sum(len(held) for _, held in ordered[REASONS_PRINTED:])
    return lines + ([f"not prunable: {more} more groups, see --json"] if more else [])


def pruned(result: PrunedTarget, *, full: bool = False) -> list[RenderableType]:
    """The result of ``apply`` on a named module: what was removed, the kind of the result, and what was written."""
    made = result.pruned
    (before, after), (dense, lean) = made.parameters, made.macs
    head = (
        f"{result.pipeline}: {before:,} parameters to {after:,} ({after / before:.2%} kept), "
        f"MACs of one call with the example {_count(dense)} to {_count(lean)}"
    )
    notes = ["module of the original class" if made.in_place else f"rewritten as a graph: {made.rebuilt_because}"]
    notes += [f"accepts only the number of samples in the example: {made.fixed_batch}"] if made.fixed_batch else []
    if result.saved is None:
        notes.append("dry run: nothing was written")
    else:
        batch = "any number of samples" if result.saved.any_batch else "the number of samples in the example"
        notes.append(f"{result.saved.path}: safetensors, and an exported program for {batch}")
        notes.append(_checked(result.saved.checks))
    left = [*shares(made.report), *budgets(made.report), *remarks(made.report), *_not_prunable(made.report)]
    return [line(head), _changes(made.groups, full=full), *map(line, left), line(_times(made.steps)), *map(line, notes)]


def demo(shown: Demo) -> list[RenderableType]:
    """The result of ``demo`` in one table."""
    table = new_table("model", *MEASURED, "largest logit difference", right=MEASURED)
    for row in shown.rows:
        checks = ", ".join(f"{name} {_value(value)}" for name, value in shown.checks[row.name].items())
        table.add_row(*_cells(row), checks)
    return [table, line(f"artifacts in {shown.path}; {shown.seconds:.0f} s")]


def reported(done: Reported) -> list[RenderableType]:
    """The page that was written, and what it does not show."""
    left = [f"not shown: {path} is an analysis of another model: {model}" for path, model in done.others.items()]
    return [line(f"{done.path}: {done.bytes:,} bytes, one page that loads nothing"), *map(line, left)]


def exported(report: ExportReport) -> list[RenderableType]:
    """What was written and how well it agrees."""
    parts: list[RenderableType] = []
    for title, values in report.measured.items():
        table = new_table("check", title, right=(title,))
        for name, value in values.items():
            table.add_row(name, value)
        parts.append(table)
    return [line(f"{report.path}: {', '.join(filter(None, (size(report.bytes), report.summary)))}"), *parts]


def measured(rows: Sequence[Measurement]) -> list[RenderableType]:
    """The result of ``eval``: a row per model."""
    titles = MEASURED if any(row.speed for row in rows) else MEASURED[:-2]
    table = new_table("model", *titles, right=titles)
    for row in rows:
        table.add_row(*_cells(row))
    return [table, *placements((row.name, row.placement.why) for row in rows if row.placement)]


def benchmarked(result: BenchmarkResult) -> list[RenderableType]:
    """The result of ``bench``: size and speed of each model, and the speed-up compared with the baseline."""
    asked = result.conditions
    head = (
        f"prompt {asked.prompt}, then {asked.new} tokens; {amount(asked.threads, 'thread')}; "
        f"median (lowest to highest) of {amount(asked.rounds, 'alternating round')}"
    )
    right = ("parameters", "size", "MACs per prompt", "memory")
    speeds = [f"{figure}, batch {batch}" for batch in asked.batches for figure in ("first token ms", "tokens/s")]
    table = new_table("model", "runtime", *right, *speeds, right=(*right, *speeds))
    for row in result.models:
        figures = [
            _spread_of(spread.median * scale, spread.low * scale, spread.high * scale)
            for timing in row.timings
            for spread, scale in ((timing.first_token, 1e3), (timing.tokens_per_second, 1))
        ]
        memory = "unknown" if row.peak_memory is None else size(row.peak_memory)
        table.add_row(row.name, row.runtime, f"{row.parameters:,}", size(row.bytes), _count(row.macs), memory, *figures)
    parts: list[RenderableType] = [line(head), table]
    compared = [row for row in result.models if row.speedups]
    if compared:
        names = list(compared[0].speedups)
        bases = ", ".join(dict.fromkeys(result.baselines.values()))
        gained = ("ideal (MACs)", *names)
        gains = new_table(f"speed-up over {bases}", "runtime", *gained, right=gained)
        for row in compared:
            found = [f"{s.median:.2f} ({s.low:.2f} to {s.high:.2f})" for s in row.speedups.values()]
            gains.add_row(row.name, row.runtime, f"{row.ideal:.2f}", *found)
        parts += [Text(""), gains]
    notes = [f"{row.name} in {row.runtime}, {note}" for row in compared for note in row.notes]
    where = placements((row.name, row.placement["why"]) for row in result.models if row.placement)
    return [*parts, *map(line, notes), *where]


def placements(found: Iterable[tuple[str, str]]) -> list[RenderableType]:
    """Where models ran, a line for each place; ONNX Runtime needs no words.

    Args:
        found: name of a model, and its placement in words, which end in what that model needs.
    """
    by_place: dict[str, dict[str, list[str]]] = {}
    for name, why in found:
        by_place.setdefault(why.partition(": ")[0], {}).setdefault(why, []).append(name)
    lines = []
    for place, held in by_place.items():
        names = [name for alike in held.values() for name in alike]
        models = "" if len(by_place) == 1 else f"{', '.join(names)}: "
        lines.append(line(models + (place if len(held) > 1 else next(iter(held)))))
    return [*lines]


def size(count: int) -> str:
    """A number of bytes as text, in a unit of fitting size."""
    return _scaled(count, (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)), "B")


def _count(count: int) -> str:
    return _scaled(count, (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)), "")


def _scaled(count: int, units: Sequence[tuple[str, float]], plain: str) -> str:
    for unit, factor in units:
        if count >= factor:
            return f"{count / factor:.2f} {unit}"
    return f"{count} {plain}".rstrip()


def _spread_of(median: float, low: float, high: float) -> str:
    digits = 1 if median < 100 else 0
    return f"{median:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"


def _cells(row: Measurement) -> list[str]:
    return [
        row.name,
        f"{row.parameters:,}",
        size(row.bytes),
        _count(row.macs),
        "" if row.perplexity is None else f"{row.perplexity.value:.2f}",
        *(f"{rate.median:,.0f}" for rate in ((row.speed.prefill, row.speed.decode) if row.speed else ())),
    ]


def _changes(groups: Sequence[GroupChange], *, full: bool = False) -> Table:
    table = new_table("group", "units", "", "kept", right=("units", "kept"))
    for changes in [[group] for group in groups] if full else _alike_changes(groups):
        first = changes[0]
        name = _spread(first.name, [change.layer for change in changes])
        table.add_row(name, str(first.before), "to", str(first.after))
    return table


def _times(steps: Sequence[StepRecord]) -> str:
    return ", ".join(f"{step.name} {step.seconds:.1f} s" for step in steps)


def _alike(groups: Sequence[Group], *, full: bool) -> list[list[Group]]:
    """Lists of groups that differ only by their layer; of one each in the ``full`` table."""
    if full:
        return [[group] for group in groups]
    found: dict[tuple[object, ...], list[Group]] = {}
    for group in groups:
        place = _layerless(group.name, group.layer)
        members = tuple((_layerless(m.tensor, group.layer), m.dim) for m in group.members)
        found.setdefault((place, _units(group), _state(group), members), []).append(group)
    return list(found.values())


def _layerless(name: str, layer: int | None) -> str:
    return name if layer is None else re.sub(rf"\.{layer}(?=[.:]|$)", ".*", name, count=1)


def _name(groups: Sequence[Group]) -> str:
    return _spread(groups[0].name, [group.layer for group in groups])


def _spread(name: str, layers: Sequence[int | None]) -> str:
    """A name in the first of some layers, changed to stand for all of them: ``{0,4,6..7}``."""
    numbers = sorted({layer for layer in layers if layer is not None})
    if len(numbers) < 2:
        return name
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    shown = ",".join(f"{run[0]}..{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
    return _layerless(name, layers[0]).replace("*", f"{{{shown}}}", 1)


def _alike_changes(changes: Sequence[GroupChange]) -> list[list[GroupChange]]:
    found: dict[tuple[object, ...], list[GroupChange]] = {}
    for change in changes:
        place = _layerless(change.name, change.layer)
        found.setdefault((place, change.before, change.after), []).append(change)
    return list(found.values())


def _value(value: object) -> str:
    return f"{value:.2g}" if isinstance(value, float) else str(value)


def _units(group: Group) -> str:
    return f"{group.parent.size} x {group.size}" if group.parent else str(group.size)


def _members(group: Group) -> str:
    names = [f"{member.tensor}.{member.dim}" for member in group.members]
    common = group.name.split(":")[0] + "."
    short = [name.removeprefix(common) for name in names]
    return " ".join(short[:6]) + (f" and {len(short) - 6} more" if len(short) > 6 else "")


def _state(group: Group) -> str:
    if group.frozen:
        return f"frozen: {group.frozen}"
    if group.ordered:
        return f"ordered: {group.ordered}"
    return "normalised" if group.normalised else ""
