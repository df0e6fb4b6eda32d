"""``apply``: run a pipeline of passes on a model, and write the result as a directory that transformers loads."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
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
from ...runtime.placement import AUTO, STREAMED, Placement, PlacementRequest, place, told_when_out_of_memory
from ...tracer.model import ModelSource, load_config
from ..model_call import ModelCall
from ..placing import largest_forward, place_model
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
    device: str | torch.device = AUTO,
    dtype: str | torch.dtype = AUTO,
    offload: str = AUTO,
    max_memory: str | int | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    print_ir_after: str | Sequence[str] = (),
    progress: Progress = silent,
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
        device: where passes compute: ``cpu``, an accelerator such as ``cuda`` or ``cuda:1``, or ``auto``: the
            accelerator that torch finds, else the CPU.
        dtype: of the arithmetic: ``float32``, ``bfloat16``, ``float16``, or ``auto``: the checkpoint's on an
            accelerator, float32 on the CPU. What is written keeps the dtype of the files.
        offload: where weights are that are not in use: ``none``, ``memory``, ``disk``, or ``auto``: the first that
            fits.
        max_memory: the most memory that may be used, such as ``"4GB"``; all that is free when None.
        trust_remote_code: whether the model's own code may run.
        allow_pickle: whether weights may be read from a pickle.
        print_ir_after: passes after which the graph is printed on stderr; ``all`` for every pass.
        progress: called with a message when a new step begins.

    Raises:
        RequestError: the request is wrong. This is checked before any work.
        FxpruneError: a pass failed, or the written artifact did not pass its check.
    """
    shared = {
        "ratio": ratio, "layers": layers, "seed": seed, "multiple_of": multiple_of, "target": target,
        "channels": channels,
    }  # fmt: skip
    request = PlacementRequest.parse(device=device, dtype=dtype, offload=offload, max_memory=max_memory)
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
    _require_passes(asked, pipeline, plan)
    kept = open_scores(scores, pipeline, texts=loss is None)
    weights = not dry_run or any(step.needs_weights for step in pipeline)
    allowed = {"trust_remote_code": trust_remote_code, "allow_pickle": allow_pickle}
    with open_source(model, tokenizer, weights=weights, **allowed) as source:
        _claim_place(out, source, force=force, dry_run=dry_run)
        recorded = None if plan is None else read_recorded(plan, source)
        if recorded is not None:
            pipeline = (Replay(sha256=recorded.sha256), *pipeline)
        model_call = ModelCall(load_config(source), example)
        model_call.check(asked, loss=loss is not None, texts=any(text is not None for text in texts.values()))
        placement = _placed(request, source, model_call.config, pipeline if weights else ())
        progress(placement.why)
        stages = None
        if out is not None and not dry_run:
            own = {"scores": None if scores is None else str(scores), "dtype": str(placement.dtype)}
            run = identity(source, pipeline, texts, example=example, loss=loss, **own)
            stages = Stages(Path(out), pipeline, run, asked=resume, progress=progress)
        with told_when_out_of_memory(placement):
            work = ModelRun(source, pipeline if weights else None, model_call, progress, placement)
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
    """The passes that the user gave; with a plan there may be none."""
    if plan is None and not isinstance(passes, str) and not passes:
        raise RequestError("missing --pass PIPELINE", "give one, or --plan FILE to repeat what another run removed")
    return parse_pipeline(passes, all_passes(), shared) if passes or plan is None else _none_of(shared)


def _require_passes(asked: Sequence[Pass], pipeline: Sequence[Pass], plan: str | Path | None) -> None:
    if asked and not pipeline and plan is None:
        raise RequestError(
            f"a dry run leaves {print_pipeline(asked)} out, and there is no other pass",
            "add a pass that prunes, or leave --dry-run out",
        )


def _placed(request: PlacementRequest, source: ModelSource, config: Any, pipeline: Sequence[Pass]) -> Placement:
    """Where the passes run; without one that runs the model, weights are read from the files one at a time."""
    if all(step.streams for step in pipeline):
        place(request)  # refuses a device that is not there
        return STREAMED
    return place_model(request, source, config, forward=largest_forward(pipeline), sums=True)


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
