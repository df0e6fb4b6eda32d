"""``apply``: run a pipeline of passes on a model, and write the result as a directory that transformers loads."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ...backends.atomic_directory import check_target, clear_leftovers
from ...backends.digests import begin_source_digests
from ...backends.huggingface.save import Form
from ...ir.errors import RequestError
from ...passes.base import Pass, PassKind
from ...passes.pipeline import parse_pipeline, print_pipeline
from ...passes.registry import all_passes
from ...passes.shrink.replay import Replay
from ...runtime.ranks import ALONE, Ranks
from ...tracer.model import ModelSource, load_config
from ..agreement import agree_on_files, on_every_rank
from ..model_call import ModelCall
from ..progress import Progress, silent
from ..request_checks import GivenText, Model, check_example, check_loss, check_model, check_paths, read_text
from ..seen_texts import CALIBRATION, RECOVERY
from ..sources import open_source
from .model_run import ModelRun
from .print_ir import check_printing, printer
from .recorded_plan import read_recorded
from .result import Applied, GroupChange
from .resume import Stages
from .run_identity import identity
from .score_file import open_scores, write_scores

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Applied", "GroupChange", "apply"]


@on_every_rank
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
    ranks: Ranks = ALONE,
) -> Applied:
    """Run a pipeline on a model and write the result.

    Args:
        model: a Hugging Face model directory, a Hub id, ``demo``, or a loaded model of transformers. A loaded model is
            not changed: its files are written to the temporary directory and pruned from there. While the call runs,
            that copy takes room on disk, and the model that is being pruned takes room in memory beside the loaded one.
        passes: pipeline text, or several texts that run one after the other. May be left out with ``plan``.
        plan: a ``plan.safetensors`` that another run wrote. It is applied before the passes.
        out: the directory to write. It appears complete or not at all. May be left out in a dry run.
        ratio, layers, seed, multiple_of, target, channels: a value for every pass that has an option of that name;
            ``layers`` as ``(start, end)`` or ``"start:end"``, end exclusive; ``target`` as ``"params=0.8"``.
        tokenizer: of a loaded model, when a pass reads text; a directory brings its own.
        calib: the text that scores are computed on: a file, a ``datasets`` id or a list of strings. When None, ``demo``
            uses its built-in text.
        data: the text that recovery trains on, in the same forms. When None, ``demo`` uses its built-in text.
        scores: a file for the scores of the first pass that computes some. If it does not exist, it is written;
            otherwise its scores are used, for any budget.
        example: the inputs of a model that is not a causal language model, such as
            ``pixel_values=float32[2,3,224,224]``. When None, they are made from its configuration.
        loss: for such a model, the loss that scores are computed from: a function that takes the module and returns a
            scalar, or its name, ``package.module:function``.
        force: whether to replace an existing ``out``.
        resume: continue an interrupted run of the same call after its last finished pass, and save every pass.
        dry_run: stop before recovery and writing. A config without weights is enough if no pass reads weights.
        form: ``uniform``, ``free``, or ``auto``: uniform where a plain config can describe the result.
        trust_remote_code: whether the model's own code may run.
        allow_pickle: whether weights may be read from a pickle.
        print_ir_after: passes after which the graph is printed on stderr; ``all`` for every pass.
        progress: called with a message when a new step begins.
        ranks: the processes that share the work; set from torchrun's environment variables, under which all processes
            make the same call. Rank 0 writes; what they return differs in times only.

    Raises:
        RequestError: the request is wrong. This is checked before any work.
        FxpruneError: a pass failed, or the written artifact did not pass its check.
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
    if asked and not pipeline and plan is None:
        raise RequestError(
            f"a dry run leaves {print_pipeline(asked)} out, and there is no other pass",
            "add a pass that prunes, or leave --dry-run out",
        )
    kept = open_scores(scores, pipeline, texts=loss is None)
    weights = not dry_run or any(step.needs_weights for step in pipeline)
    allowed = {"trust_remote_code": trust_remote_code, "allow_pickle": allow_pickle}
    with open_source(model, tokenizer, weights=weights, **allowed) as source:
        agree_on_files(ranks, [source], calib, data, plan, scores)
        if ranks.first:
            _claim_place(out, source, force=force, dry_run=dry_run)
        recorded = None if plan is None else read_recorded(plan, source)
        if recorded is not None:
            pipeline = (Replay(sha256=recorded.sha256), *pipeline)
        model_call = ModelCall(load_config(source), example)
        model_call.check(asked, loss=loss is not None, texts=any(text is not None for text in texts.values()))
        stages = None
        if out is not None and not dry_run:
            place = None if scores is None else str(scores)
            run = identity(source, pipeline, texts, example=example, loss=loss, scores=place)
            stages = Stages(Path(out), pipeline, run, asked=resume, progress=progress)
            ranks.agree({"the number of passes that --resume finds done": str(stages.done)})
        work = ModelRun(source, pipeline if weights else None, model_call, progress, ranks)
        work.read(pipeline, texts, loss=loss, recorded=recorded, scores=kept)
        applied = work.run(pipeline, printer(shown if ranks.first else ()), stages)
        ranks.by_first(lambda: write_scores(scores, work.state.ledger.scores))
        left = print_pipeline(step for step in asked if step not in pipeline)
        applied = dataclasses.replace(applied, skipped=left)
        if out is None or dry_run:
            return applied
        if recorded is not None and not asked:
            recorded.check_result(applied.parameters)
        progress(f"writing {out}")
        saved = ranks.by_first(partial(work.save, Path(out), applied, form=form, force=force))
        applied = dataclasses.replace(applied, saved=saved)
    if stages is not None and ranks.first:
        stages.clear()
    return applied


def _asked(passes: str | Sequence[str], plan: str | Path | None, shared: Mapping[str, Any]) -> tuple[Pass, ...]:
    """The passes that the user gave; with a plan there may be none."""
    if plan is None and not isinstance(passes, str) and not passes:
        raise RequestError("missing --pass PIPELINE", "give one, or --plan FILE to repeat what another run removed")
    return parse_pipeline(passes, all_passes(), shared) if passes or plan is None else _none_of(shared)


def _require_place(out: str | Path | None, *, resume: bool, dry_run: bool) -> None:
    if out is None and not dry_run:
        raise RequestError("missing --out DIR", "give one, or --dry-run to write nothing")
    if resume and dry_run:
        raise RequestError("--resume has no effect with --dry-run", "leave out one of the two")


def _claim_place(out: str | Path | None, source: ModelSource, *, force: bool, dry_run: bool) -> None:
    """Check that the directory can be made, and begin to hash the source in the background."""
    if out is not None:
        clear_leftovers(Path(out))
        check_target(Path(out), force=force, source=source.directory)
    if not dry_run:
        begin_source_digests(source.directory)


def _none_of(shared: Mapping[str, Any]) -> tuple[Pass, ...]:
    """No passes; refuses options that only a pass could use."""
    for name, value in shared.items():
        if value is not None:
            flag = "--" + name.replace("_", "-")
            raise RequestError(
                f"{flag} has no effect with --plan alone", f"leave {flag} out, or add the --pass that it is for"
            )
    return ()
