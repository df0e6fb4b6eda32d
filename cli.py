"""The command line: arguments in, tables and exit codes out.

Nothing heavy is imported before a command runs, so that ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
import atexit
import difflib
import gc
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

from .api.progress import Progress, silence
from .api.terminal import screen, streams
from .api.terminal.arguments import build_parser
from .api.terminal.going_on import to_go_on
from .api.terminal.progress_display import Loudness
from .api.terminal.signals import Terminated, ended_by_signals
from .api.terminal.texts.options import EVALUATION, texts_of
from .backends.digests import begin_source_digests
from .ir.errors import FxpruneError, RequestError, ends_program, printable
from .runtime.ranks import ELSEWHERE, is_first_rank, number_of_ranks

INTERRUPTED = 130

BEFORE_SILENCE = 20.0
"""Seconds for which a process of several that has nothing to say waits for the one that has."""

FAILURE = FxpruneError.exit_code
COLLECTION = 100_000
"""Python's garbage collector runs after so many new objects. Its default takes a fifth of the time of all imports."""


def _trace(arguments: argparse.Namespace) -> int:
    from . import api
    from .api.terminal import tables

    with _working(arguments) as progress:
        if api.is_named_module(arguments.model, arguments.example):
            given = {name: getattr(arguments, name) for name in ("trust_remote_code", "merge_adapter")}
            api.refuse_options(arguments.model, given)
            traced = api.trace_target(arguments.model, arguments.example, progress=progress)
        else:
            traced = api.trace(
                arguments.model, example=arguments.example, trust_remote_code=arguments.trust_remote_code,
                merge_adapter=arguments.merge_adapter, progress=progress,
            )  # fmt: skip
        why = traced.why(*arguments.why) if arguments.why else None
        if arguments.dot:
            traced.write_dot(arguments.dot)
    if arguments.ir and not arguments.json:
        print(printable(traced.text(), lines=True), end="")
    elif why is not None:
        data = {group: [hop.to_json() for hop in hops] for group, hops in why.items()}
        _emit(arguments, {"why": data}, lambda: tables.why(why, *arguments.why))
    else:
        _emit(arguments, traced.to_json(with_text=arguments.ir), lambda: tables.trace(traced, full=arguments.full))
    return 0


_WHERE = ("device", "dtype", "offload", "max_memory")
FOR_ALL_PASSES = ("ratio", "target", "tolerance", "layers", "within", "seed", "multiple_of", "runtime", "channels")
"""Options of passes that are flags too, for all passes that have them."""

_APPLY = ("out", *FOR_ALL_PASSES, "force", "dry_run")
_APPLY_MODEL = (
    "plan", "calib", "data", "field", "split", "train_on", "scores", "resume", "form", "trust_remote_code",
    "allow_pickle", "merge_adapter", "print_ir_after",
)  # fmt: skip


def _apply(arguments: argparse.Namespace) -> int:
    from .api.pruning.asked_passes import asked_passes
    from .api.stage_places import check_resume
    from .passes.select.target import holds_sizes, parse_sizes

    # Once more below, with the model: but a mistake in a pass is told at once, and torch takes seconds to import.
    shared = {name: getattr(arguments, name) for name in (*FOR_ALL_PASSES, "train_on")}
    sizes = parse_sizes(arguments.target) if holds_sizes(arguments.target, arguments.out) else ()
    one = {"target": sizes[0]} if sizes else {}
    asked_passes(arguments.passes, arguments.plan, {**shared, **one}, uniform=arguments.form == "uniform")
    check_resume(arguments.resume, dry_run=arguments.dry_run, several=bool(sizes))
    if number_of_ranks() == 1 and not arguments.dry_run:
        from .api.places import check_early, places_of_sizes

        for place in places_of_sizes(arguments.out, sizes) if sizes else [arguments.out]:
            check_early(place, force=arguments.force, resume=arguments.resume, model=arguments.model)
    if not arguments.dry_run and is_first_rank():
        begin_source_digests(Path(arguments.model))  # in the background: the imports below take seconds
    from . import api
    from .api.terminal import tables
    from .api.terminal.options.repeated import tell_of_weights

    with _working(arguments) as progress:
        given = {name: getattr(arguments, name) for name in _APPLY}
        others = {name: getattr(arguments, name) for name in _APPLY_MODEL}
        others |= {name: texts_of(others[name]) for name in ("calib", "data")}
        where = _where(arguments)
        if api.is_named_module(arguments.model, arguments.example):
            device = where.pop("device", None)
            _require_one_process(f"fxprune apply {arguments.model}")
            data = {name: others.pop(name) for name in ("calib", "data")}
            api.refuse_options(arguments.model, {**others, **where, "form": arguments.form != "auto"})
            called = {"loss": arguments.loss, "device": device, **data}
            pruned = api.prune_target(
                arguments.model, arguments.example, arguments.passes, progress=progress, **given, **called
            )
            data, table = pruned.to_json(), partial(tables.pruned, pruned, full=arguments.full)
        else:
            called = {"example": arguments.example, "loss": arguments.loss}
            asked = {**given, **others, **called, **where}
            if one:
                made = api.apply_sizes(arguments.model, arguments.passes, progress=progress, **asked)
                data, table = {"sizes": [x.to_json() for x in made]}, partial(tables.sizes, made, full=arguments.full)
            else:
                applied = api.apply(arguments.model, arguments.passes, progress=progress, **asked)
                data, table = applied.to_json(), partial(tables.applied, applied, full=arguments.full)
    tell_of_weights(arguments)
    _emit(arguments, data, table)
    return 0


def _analyze(arguments: argparse.Namespace) -> int:
    from .api.terminal.options.analysis import analyzed

    with _working(arguments) as progress:
        found = analyzed(arguments, _where(arguments), progress)
    from .api.terminal.analyses import analysis

    _emit(arguments, found.to_json(), lambda: analysis(found))
    return 0


def _export(arguments: argparse.Namespace) -> int:
    from . import api
    from .api.terminal import tables

    with _working(arguments) as progress:
        exported = api.export(
            arguments.model, arguments.out, format=arguments.format, dtype=arguments.dtype, layout=arguments.layout,
            optimize=arguments.optimize, cache=arguments.cache, pad=arguments.pad, example=arguments.example,
            force=arguments.force, trust_remote_code=arguments.trust_remote_code,
            merge_adapter=arguments.merge_adapter, progress=progress,
            **{name: value for name, value in _where(arguments).items() if name != "dtype"},
        )  # fmt: skip
    _emit(arguments, exported.to_json(), lambda: tables.exported(exported))
    return 0


def _eval(arguments: argparse.Namespace) -> int:
    from . import api
    from .api.terminal.texts import evaluated

    with _working(arguments) as progress:
        place = evaluated.result_file(arguments.json) if is_first_rank() else None
        given = {name: getattr(arguments, name) for name in EVALUATION}
        texts = texts_of(arguments.text)
        found = api.compare(arguments.models, texts, progress=progress, **given, **_where(arguments))
        if place is not None:
            evaluated.write_result(found, place)
            arguments.json = False
    _emit(arguments, found.to_json(), lambda: evaluated.compared(found))
    return 0


def _bench(arguments: argparse.Namespace) -> int:
    from . import api
    from .api.terminal import drafts, tables
    from .api.terminal.options import draft

    drafted = draft.asked(arguments)
    with _working(arguments) as progress:
        if drafted is not None:
            raced = api.bench_draft(**drafted, progress=progress, **_where(arguments))
            data, table = raced.to_json(), partial(drafts.drafted, raced)
        else:
            timed = api.bench(
                arguments.models, onnx=arguments.onnx, baseline=arguments.baseline, prompt=arguments.prompt,
                new=arguments.new, rounds=arguments.rounds, threads=arguments.threads,
                trust_remote_code=arguments.trust_remote_code, allow_pickle=arguments.allow_pickle,
                merge_adapter=arguments.merge_adapter, progress=progress, **_where(arguments),
            )  # fmt: skip
            data, table = timed.to_json(), partial(tables.benchmarked, timed)
    _emit(arguments, data, table)
    return 0


def _report(arguments: argparse.Namespace) -> int:
    from . import api
    from .api.terminal import tables

    with _working(arguments) as progress:
        given = {name: getattr(arguments, name) for name in ("eval", "analysis", "force")}
        asked = {"score_files": arguments.scores, "progress": progress}
        done = api.report(arguments.outs, arguments.html, **given, **asked)
    _emit(arguments, done.to_json(), lambda: tables.reported(done))
    return 0


def _passes(arguments: argparse.Namespace) -> int:
    from . import api
    from .api.listing import pass_named
    from .api.terminal import option_tables

    with _working(arguments):
        listed = api.list_passes()
        chosen = [pass_named(name, listed) for name in arguments.names]
    table = (lambda: option_tables.pass_by_pass(chosen)) if chosen else lambda: option_tables.passes(listed)
    _emit(arguments, {"passes": [row.to_json() for row in chosen or listed]}, table)
    return 0


def _help(arguments: argparse.Namespace) -> int:
    parser = build_parser(COMMANDS)
    if arguments.topic is None:
        parser.print_help()
        return 0
    if arguments.topic not in parser.commands:
        near = difflib.get_close_matches(arguments.topic, parser.commands)
        raise RequestError(
            f"there is no command {arguments.topic!r}",
            (f"did you mean {near[0]}? " if near else "") + "see `fxprune help`; `fxprune passes NAME` shows a pass",
        )
    parser.commands[arguments.topic].print_help()
    return 0


def _completion(arguments: argparse.Namespace) -> int:
    from .api.terminal.completion import completion
    from .passes.registry import pass_table

    print(completion(arguments.shell, build_parser(COMMANDS), pass_table()), end="")
    return 0


def _formats(arguments: argparse.Namespace) -> int:
    from . import api
    from .api.terminal import option_tables

    with _working(arguments):
        listed = api.list_formats()
    _emit(arguments, {"formats": [row.to_json() for row in listed]}, lambda: option_tables.formats(listed))
    return 0


def _recipe(arguments: argparse.Namespace) -> int:
    from .api.recipes.printed import recipe_text
    from .api.recipes.read import description, own_recipes
    from .api.request_checks import check_paths

    if arguments.what is None:
        listed = {name: description(path) for name, path in own_recipes().items()}
        _emit(arguments, {"recipes": listed}, lambda: [f"{name}: {said}" for name, said in listed.items()])
        return 0
    with _working(arguments):
        check_paths(DIR=arguments.what)
        text = recipe_text(arguments.what)
    print(json.dumps({"recipe": text}) if arguments.json else printable(text, lines=True), end="")
    return 0


def _push(arguments: argparse.Namespace) -> int:
    from . import api

    with _working(arguments) as progress:
        done = api.push(
            arguments.artifact, arguments.repository, private=arguments.private, results=arguments.results,
            dry_run=arguments.dry_run, progress=progress,
        )  # fmt: skip
    what = f"would upload to {done.repository}" if arguments.dry_run else f"uploaded: {done.url}"
    _emit(arguments, done.to_json(), lambda: [f"{len(done.files)} files, {done.bytes:,} bytes {what}"])
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    from . import api
    from .api.terminal import machine

    with _working(arguments):
        found = api.examine()
    _emit(arguments, found.to_json(), lambda: machine.examined(found))
    return 0


def _demo(arguments: argparse.Namespace) -> int:
    from .api.places import check_early

    if not arguments.force:  # then the places of its artifacts are looked at, not the directory that holds them
        check_early(arguments.out, force=False)
    from . import api
    from .api.terminal import tables

    with _working(arguments) as progress:
        shown = api.run_demo(arguments.out, force=arguments.force, progress=progress)
    _emit(arguments, shown.to_json(), lambda: tables.demo(shown))
    return 0


def _where(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the user said about where the model runs; what is left to fxprune is left out."""
    given = {name: getattr(arguments, name) for name in _WHERE}
    return {name: value for name, value in given.items() if value not in (None, "auto")}


def _working(arguments: argparse.Namespace) -> AbstractContextManager[Progress]:
    loudness = Loudness.VERBOSE if arguments.verbose else Loudness.QUIET if arguments.quiet else Loudness.USUAL
    return screen.working(debug=arguments.debug, speaks=is_first_rank(), loudness=loudness, log=arguments.log_file)


def _emit(arguments: argparse.Namespace, data: dict[str, Any], table: Callable[[], Sequence[Any]]) -> None:
    if is_first_rank():
        screen.emit(data if arguments.json is True else table())


COMMANDS = {
    "trace": _trace,
    "apply": _apply,
    "analyze": _analyze,
    "export": _export,
    "eval": _eval,
    "bench": _bench,
    "report": _report,
    "passes": _passes,
    "formats": _formats,
    "recipe": _recipe,
    "push": _push,
    "doctor": _doctor,
    "demo": _demo,
    "help": _help,
    "completion": _completion,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program.

    Args:
        argv: arguments, without the program's name; those of the process when None.

    Returns:
        The exit code: 0 done, 1 failed, 2 bad request, 130 interrupted, 128 and its number for another signal.
    """
    streams.complete_streams()
    silence()
    gc.set_threshold(COLLECTION)
    atexit.register(gc.freeze)  # no garbage collection at exit
    arguments = build_parser(COMMANDS).parse_args(argv)
    try:
        streams.require_directories()
        with ended_by_signals():
            if arguments.run not in (_apply, _eval):
                _require_one_process(f"fxprune {arguments.command}")
            if arguments.run is _apply:
                from .api.terminal.options.repeated import with_recipe

                arguments = with_recipe(arguments, (sys.argv[1:] if argv is None else argv)[1:])
            code = int(arguments.run(arguments))
        sys.stdout.flush()  # what fails at exit could not be told any more
        return code
    except KeyboardInterrupt as error:
        if is_first_rank():
            print(f"interrupted{f' by {error}' if isinstance(error, Terminated) else ''}", file=sys.stderr)
            if hint := to_go_on(arguments, sys.argv[1:] if argv is None else argv):
                print(f"hint: {hint}", file=sys.stderr)
        return error.exit_code if isinstance(error, Terminated) else INTERRUPTED
    except BrokenPipeError:
        # The reader of our stdout has closed it; Python must not fail when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return FAILURE
    except BaseException as error:
        if ends_program(error):
            raise
        told = ELSEWHERE in getattr(error, "__notes__", ())
        if arguments.debug and not told:
            raise
        if told:  # torchrun ends all when the first one fails, and that should be the one that says why
            time.sleep(BEFORE_SILENCE)
        return screen.explain(error, told=told, origins=getattr(arguments, "origins", ()))


def _require_one_process(command: str) -> None:
    """Refuse several processes for what does not share its work: each would do all of it."""
    if number_of_ranks() <= 1:
        return
    error = RequestError(
        f"{command} runs in one process, and torchrun started {number_of_ranks()}",
        "start it without torchrun; eval, and apply on Hugging Face models, share their work among processes",
    )
    if not is_first_rank():
        error.add_note(ELSEWHERE)
    raise error
