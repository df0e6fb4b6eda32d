"""apply: a pipeline of passes on a model, and what comes out as a directory that transformers loads."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..backends.artifact import check_target, clear_leftovers
from ..backends.digests import begin_source_digests
from ..backends.huggingface import Form
from ..ir.errors import RequestError
from ..passes.base import Pass, PassKind
from ..passes.pipeline import parse_pipeline, print_pipeline
from ..passes.registry import all_passes
from ..passes.replay import Replay
from ..tracer.model import Source, load_config
from .applied import Applied, GroupChange
from .calling import Calling
from .given import GivenText, Model, check_example, check_loss, check_model, check_paths, read_text
from .printing import check_printing, printer
from .progress import Progress, silent
from .replay import read_recorded
from .resume import Stages, identity
from .scores import open_scores, write_scores
from .sources import open_source
from .texts import CALIBRATION, RECOVERY
from .work import Work

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Applied", "GroupChange", "apply"]


def apply(
    model: Model,
    passes: str | Sequence[str] = (),
    *,
    plan: str | Path | None = None,
    out: str | Path | None = None,
    ratio: float | str | None = None,
    layers: tuple[int, int] | str | None = None,
    seed: int | str | None = None,
    multiple_of: int | str | None = None,
    target: str | None = None,
    channels: bool | str | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    calib: GivenText | None = None,
    data: GivenText | None = None,
    scores: str | Path | None = None,
    example: str | None = None,
    loss: str | Callable[[torch.nn.Module], torch.Tensor] | None = None,
    force: bool = False,
    resume: bool = False,
    dry_run: bool = False,
    form: Form = "auto",
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    print_ir_after: str | Sequence[str] = (),
    progress: Progress = silent,
) -> Applied:
    """Run a pipeline on a model and write what comes out.

    Args:
        model: a Hugging Face model directory, a Hub id, ``demo``, or a loaded model of transformers. A loaded one stays
            as it is: its files are written to the temporary directory and pruned from there, so that both that copy
            and, in memory, the model that is being pruned are there beside it while the call runs.
        passes: pipeline text, or several that run one after the other; may be left out with ``plan``.
        plan: a ``plan.safetensors`` that another run wrote; carried out before the passes.
        out: the directory to make, complete or absent; may be left out in a dry run.
        ratio, layers, seed, multiple_of, target, channels: for every pass that has an option of that name; ``layers``
            as ``(start, end)`` or ``"start:end"``, end exclusive; ``target`` as ``"params=0.8"``.
        tokenizer: of a loaded model, when a pass reads text; a directory brings its own.
        calib: text that scores are computed on: a file, a ``datasets`` id or a list of strings; the built-in one for
            ``demo`` when None.
        data: text that recovery trains on, likewise.
        scores: a file that keeps the scores of the first pass that has some: written if it does not exist, otherwise
            used in place of computing them, for any budget.
        example: what a model that is no causal language model is called with, such as
            ``pixel_values=float32[2,3,224,224]``; made from its configuration when None.
        loss: for such a model, what scores are computed from: takes the module and returns a scalar, or is named
            ``package.module:function``.
        force: whether an existing ``out`` is replaced.
        resume: go on after the last pass that the same call had done when it broke off, and keep every pass.
        dry_run: stop before recovery and writing; a config is enough when no pass reads weights.
        form: ``uniform``, ``free``, or ``auto``, which is uniform where a plain config describes the result.
        trust_remote_code: whether the model's own code may run.
        allow_pickle: whether weights may be read from a pickle.
        print_ir_after: passes after which the graph is printed on stderr; ``all`` for every one.
        progress: told what is going on.

    Raises:
        RequestError: anything that is wrong with the request, before any work.
        FxpruneError: a pass failed, or what was written is not what was to be written.
    """
    shared = {
        "ratio": ratio, "layers": layers, "seed": seed, "multiple_of": multiple_of, "target": target,
        "channels": channels,
    }  # fmt: skip
    check_model(model, tokenizer)
    check_paths(plan=plan, out=out, scores=scores)
    check_example(example)
    check_loss(loss, named=True)
    texts = {CALIBRATION: read_text(calib, "calib"), RECOVERY: read_text(data, "data")}
    asked = _asked(passes, plan, shared)
    pipeline = tuple(step for step in asked if not (dry_run and step.kind == PassKind.RECOVER))
    shown = [print_ir_after] if isinstance(print_ir_after, str) else print_ir_after
    check_printing(shown, pipeline)
    _require_place(out, resume=resume, dry_run=dry_run)
    kept = open_scores(scores, pipeline, texts=loss is None)
    weights = not dry_run or any(step.needs_weights for step in pipeline)
    allowed = {"trust_remote_code": trust_remote_code, "allow_pickle": allow_pickle}
    with open_source(model, tokenizer, weights=weights, **allowed) as source:
        _claim_place(out, source, force=force, dry_run=dry_run)
        recorded = None if plan is None else read_recorded(plan, source)
        if recorded is not None:
            pipeline = (Replay(sha256=recorded.sha256), *pipeline)
        calling = Calling(load_config(source), example)
        calling.check(asked, loss=loss is not None, texts=any(text is not None for text in texts.values()))
        stages = None
        if out is not None and not dry_run:
            place = None if scores is None else str(scores)
            run = identity(source, texts, example=example, loss=loss, scores=place)
            stages = Stages(Path(out), pipeline, run, asked=resume, progress=progress)
        work = Work(source, pipeline if weights else None, calling, progress)
        work.read(pipeline, texts, loss=loss, recorded=recorded, scores=kept)
        applied = work.run(pipeline, printer(shown), stages)
        write_scores(scores, work.state.ledger.scores)
        left = print_pipeline(step for step in asked if step not in pipeline)
        applied = dataclasses.replace(applied, skipped=left)
        if out is None or dry_run:
            return applied
        if recorded is not None and not asked:
            recorded.check_result(applied.parameters)
        progress(f"writing {out}")
        applied = dataclasses.replace(applied, saved=work.save(Path(out), applied, form=form, force=force))
    if stages is not None:
        stages.clear()
    return applied


def _asked(passes: str | Sequence[str], plan: str | Path | None, shared: Mapping[str, Any]) -> tuple[Pass, ...]:
    """The passes that were written out; none are needed beside a plan."""
    if plan is None and not isinstance(passes, str) and not passes:
        raise RequestError(
            "there is nothing to do", "give --pass PIPELINE, or --plan FILE to repeat what a run removed"
        )
    return parse_pipeline(passes, all_passes(), shared) if passes or plan is None else _none_of(shared)


def _require_place(out: str | Path | None, *, resume: bool, dry_run: bool) -> None:
    if out is None and not dry_run:
        raise RequestError("there is nowhere to write to", "give --out DIR, or --dry-run to write nothing")
    if resume and dry_run:
        raise RequestError("a dry run writes nothing that it could resume", "leave out --resume or --dry-run")


def _claim_place(out: str | Path | None, source: Source, *, force: bool, dry_run: bool) -> None:
    """See that the directory can be made, and begin to hash the source while other work is done."""
    if out is not None:
        clear_leftovers(Path(out))
        check_target(Path(out), force=force, source=source.directory)
    if not dry_run:
        begin_source_digests(source.directory)


def _none_of(shared: Mapping[str, Any]) -> tuple[Pass, ...]:
    """No passes, so that no option of a pass was given."""
    for name, value in shared.items():
        if value is not None:
            raise RequestError(f"a plan leaves no room for {name} {value}", "leave it out, or name the pass it is for")
    return ()
