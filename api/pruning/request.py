"""``apply``: run a pipeline of passes on a model, and write the result as a directory that transformers loads."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from ...backends.atomic_directory import clear_partial
from ...backends.digests import begin_source_digests
from ...backends.huggingface.save import Form
from ...backends.huggingface.writable import check_writable, lost_when_loaded, refuse_lost
from ...backends.seen import Seen
from ...ir.errors import RequestError
from ...passes.base import Pass, PassKind
from ...passes.pipeline import print_pipeline
from ...passes.score_cache import ScoreCache
from ...passes.shrink.replay import Replay
from ...passes.sizes import NestedSizes
from ...runtime.place.choices import AUTO
from ...runtime.place.placement import (
    STREAMED,
    Placement,
    PlacementRequest,
    more_frugally,
    place,
    told_when_out_of_memory,
)
from ...runtime.ranks import ALONE, Ranks
from ...tracer.inputs.input_set import DataSet
from ...tracer.model import ModelSource, build_meta, load_config
from ..agreement import agree_on_files, on_every_rank
from ..inputs.reading import GivenReading, Readings
from ..inputs.seen_inputs import AsGiven, check_reading, check_training, is_text, opened_inputs
from ..inputs.usable_texts import unread
from ..model_call import ModelCall
from ..places import check_apart, claim
from ..placing import largest_forward, place_model
from ..progress import Progress, silent
from ..request_checks import (
    CALIBRATION,
    RECOVERY,
    GivenData,
    Model,
    check_example,
    check_loss,
    check_model,
    check_paths,
    paths_of,
    read_data,
)  # fmt: skip
from ..sources import open_source
from ..stage_places import check_resume
from .asked_passes import asked_passes
from .group_change import GroupChange
from .model_run import ModelRun
from .print_ir import check_printing, printer
from .recorded_plan import Recorded, read_recorded
from .result import Applied
from .resume import Stages
from .run_identity import identity, named_example
from .score_file import open_scores, write_scores

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Applied", "ApplyRequest", "GroupChange", "apply"]

Texts: TypeAlias = Mapping[str, AsGiven]
"""Calibration and recovery data, as they were given."""


@dataclass(frozen=True, kw_only=True)
class ApplyRequest:
    """What is pruned, by which passes, and what is written: the arguments of :func:`apply`.

    Attributes:
        model: a Hugging Face model directory, a Hub id, ``demo``, or a loaded model of transformers. A loaded model is
            not changed: its files are written to the temporary directory and pruned from there. While the call runs,
            that copy takes room on disk, and the model that is being pruned takes room in memory beside the loaded one.
        passes: pipeline text, or several texts that run one after the other. May be left out with ``plan``.
        plan: the directory that another run wrote, or its ``fxprune.plan``. It is applied before the passes.
        out: the directory to write. It appears complete or not at all. May be left out in a dry run.
        shared: ``ratio``, ``layers``, ``within``, ``seed``, ``multiple_of``, ``runtime``, ``target``, ``tolerance``,
            ``channels`` and ``train_on``: a value for every pass that has an option of that name; ``layers`` as
            ``(start, end)`` or ``"start:end"``, end exclusive; ``within`` as ``"language_model"``; ``target`` as
            ``"params=0.8"``.
        tokenizer: of a loaded model, when a pass reads text; a directory brings its own.
        calib: what scores are computed on. Text for a causal language model: a file, a ``datasets`` id or a list of
            strings; when None, ``demo`` uses its built-in text. For any model its inputs: a folder of images or sounds,
            texts, a ``datasets`` id, a ``.safetensors`` or ``.npz`` file of tensors by argument name,
            ``package.module:function`` that yields batches, or an iterable of such batches.
        data: what recovery trains on, in the same forms.
        readings: ``field`` and ``split``: which field of the rows of texts is read, or ``PROMPT,ANSWER``, and which
            split of a data set; ``calib=NAME`` or ``data=NAME`` for one of the two. None: fields of the usual names,
            and the split that the name of the data set says.
        scores: a file for the scores of the first pass that computes some. If it does not exist, it is written;
            otherwise its scores are used, for any budget.
        example: the inputs of a model that is not a causal language model or also reads images, such as
            ``pixel_values=float32[2,3,224,224]``, or a file that holds them by name (``.safetensors``, ``.npz``). When
            None, they are made from its configuration, with images where the class makes text from images.
        loss: for such a model, a loss for scores in place of its own: a function that takes the module and returns a
            scalar, or its name, ``package.module:function``.
        force: whether to replace an existing ``out``.
        resume: continue an interrupted run of the same call after its last finished pass, and save every pass.
        dry_run: stop before recovery and writing. A config without weights is enough if no pass reads weights.
        form: ``uniform``, ``free``, or ``auto``: uniform where a plain config can describe the result. ``uniform``
            picks the nearest counts that a plain config can say.
        place: where passes compute. ``device``: ``cpu``, an accelerator such as ``cuda`` or ``cuda:1``, or ``auto``:
            the accelerator that torch finds, else the CPU. ``dtype`` of the arithmetic: ``float32``, ``bfloat16``,
            ``float16``, or ``auto``: the checkpoint's on an accelerator, float32 on the CPU; what is written keeps the
            dtype of the files. ``offload``, where weights are that are not in use: ``none``, ``memory``, ``disk``, or
            ``auto``: the first that fits. ``max_memory``, the most that may be used, such as ``"4GB"``; all that is
            free when None.
        trust_remote_code: whether the model's own code may run.
        allow_pickle: whether weights may be read from a pickle.
        merge_adapter: whether an adapter that comes with the model, as ``adapter_config.json`` or in a loaded one, is
            merged into its weights first. The merged copy takes room in the temporary directory; with that model the
            result is compared. Without, such a model is refused.
        print_ir_after: passes after which the graph is printed on stderr; ``all`` for every pass.
        progress: called with a message when a new step begins.
        ranks: the processes that share the work; set from torchrun's environment variables, under which all processes
            make the same call. Rank 0 writes; what they return differs in times only.
        sizes: what the calls for several sizes of a model share; set by :func:`~.nested.apply_sizes`.
    """

    model: Model
    passes: str | Sequence[str]
    plan: str | Path | None
    out: str | Path | None
    shared: Mapping[str, Any]
    tokenizer: PreTrainedTokenizerBase | None
    calib: GivenData | None
    data: GivenData | None
    readings: Readings
    scores: str | Path | None
    example: str | None
    loss: str | Callable[[torch.nn.Module], torch.Tensor] | None
    force: bool
    resume: bool
    dry_run: bool
    form: Form
    place: PlacementRequest
    trust_remote_code: bool
    allow_pickle: bool
    merge_adapter: bool
    print_ir_after: str | Sequence[str]
    progress: Progress
    ranks: Ranks
    sizes: NestedSizes | None

    def run(self) -> Applied:
        """Check the request, run its passes and write the result.

        Raises:
            RequestError: before any work.
            FxpruneError: a pass failed, or the check of what was written.
        """
        texts = self._read_arguments()
        asked = self._asked()
        pipeline = self._pipeline(asked)
        kept = open_scores(self.scores, pipeline, texts=self.loss is None)
        weights = not self.dry_run or any(step.needs_weights for step in pipeline)
        with self._source(weights) as source, ExitStack() as stack:
            others = [*paths_of("", self.calib).values(), *paths_of("", self.data).values()]
            agree_on_files(self.ranks, [source], *others, self.plan, self.scores)
            seen = self._claim_place(source) if self.ranks.first else None
            recorded = None if self.plan is None else read_recorded(self.plan, source)
            if recorded is not None:
                pipeline = (Replay(sha256=recorded.sha256), *pipeline)
            config = load_config(source)
            self._check_writable(source, config)
            model_call = ModelCall(config, self.example)
            there = {"calib": texts[CALIBRATION] is not None, "data": texts[RECOVERY] is not None}
            model_call.check(asked, loss=self.loss is not None, **there)
            inputs = self._opened(texts, source, model_call, asked)
            placement = self._placed(source, model_call.config, pipeline if weights else ())
            self.ranks.agree({"the arithmetic": f"{placement.dtype} on {placement.device.type}"})
            self.progress(placement.why)
            work, applied, stages = self._worked(
                stack, _Task(source, pipeline, texts, inputs, model_call, recorded, kept, weights), placement
            )
            self.ranks.by_first(lambda: write_scores(self.scores, work.state.ledger.scores))
            left = print_pipeline(step for step in asked if step not in pipeline)
            applied = dataclasses.replace(applied, skipped=left, unread=unread(texts, work.texts))
            if self.out is None or self.dry_run:
                return applied
            if recorded is not None and not asked:
                recorded.check_result(applied.parameters[1])
            self.progress(f"writing {self.out}")
            write = partial(work.save, Path(self.out), applied, form=self.form, force=self.force, seen=seen)
            saved = self.ranks.by_first(write)
        if stages is not None and self.ranks.first:
            stages.clear()
        return dataclasses.replace(applied, saved=saved)

    def _asked(self) -> tuple[Pass, ...]:
        """All passes of the request."""
        return asked_passes(self.passes, self.plan, self.shared, data=self.data, uniform=self.form == "uniform")

    def _source(self, weights: bool) -> AbstractContextManager[ModelSource]:
        return open_source(
            self.model, self.tokenizer, weights=weights, trust_remote_code=self.trust_remote_code,
            allow_pickle=self.allow_pickle, merge_adapter=self.merge_adapter, progress=self.progress,
        )  # fmt: skip

    def _worked(self, stack: ExitStack, task: _Task, placement: Placement) -> tuple[ModelRun, Applied, Stages | None]:
        """Run the passes; where memory runs out, again from the last stage with weights kept more frugally."""
        out = None if self.out is None or self.dry_run else Path(self.out)
        pipeline = task.pipeline if task.weights else None

        def attempt(frugal: Placement | None) -> tuple[ModelRun, Applied, Stages | None]:
            there = frugal or placement
            stages = self._stages(task, there, asked=self.resume or frugal is not None)
            with told_when_out_of_memory(there), task.model_call.within_its_context(task.pipeline):
                work = ModelRun(
                    task.source, pipeline, task.model_call, self.progress, placement=there, out=out, ranks=self.ranks,
                    form=self.form,
                )  # fmt: skip
                stack.callback(work.close)
                work.read(
                    task.pipeline, task.texts, task.inputs, loss=self.loss, recorded=task.recorded, scores=task.scores,
                    sizes=self.sizes, readings=self.readings,
                )  # fmt: skip
                return work, work.run(task.pipeline, printer(self._printed if self.ranks.first else ()), stages), stages

        if self.ranks.count > 1:  # the other processes would wait for this one
            return attempt(None)
        return more_frugally(attempt, self.place, self.progress)

    def _read_arguments(self) -> Texts:
        """Check that the arguments are of the kinds they can be; returns the texts as they were given."""
        check_model(self.model, self.tokenizer, merge_adapter=self.merge_adapter)
        check_paths(plan=self.plan, out=self.out, scores=self.scores)
        check_example(self.example)
        check_loss(self.loss, named=True)
        return {CALIBRATION: read_data(self.calib, "calib"), RECOVERY: read_data(self.data, "data")}

    def _opened(
        self, texts: Texts, source: ModelSource, model_call: ModelCall, asked: Sequence[Pass]
    ) -> Mapping[str, DataSet]:
        """The data sets that are no text, looked at before any work."""
        check_reading(self.readings, texts, language=model_call.language)
        if all(given is None or is_text(given, language=model_call.language) for given in texts.values()):
            return {}
        model = build_meta(model_call.config, consent=source.consent)
        found = opened_inputs(texts, model, source, language=model_call.language)
        check_training(asked, found)
        return found

    def _pipeline(self, asked: tuple[Pass, ...]) -> tuple[Pass, ...]:
        """The passes that will run: all of them, or in a dry run those before recovery."""
        pipeline = tuple(step for step in asked if not (self.dry_run and step.kind == PassKind.RECOVER))
        check_printing(self._printed, pipeline)
        if self.out is None and not self.dry_run:
            raise RequestError("missing --out DIR", "give one, or --dry-run to write nothing")
        check_resume(self.resume, dry_run=self.dry_run)
        if asked and not pipeline and self.plan is None:
            raise RequestError(
                f"a dry run leaves {print_pipeline(asked)} out, and there is no other pass",
                "add a pass that prunes, or leave --dry-run out",
            )
        return pipeline

    @property
    def _printed(self) -> Sequence[str]:
        return [self.print_ir_after] if isinstance(self.print_ir_after, str) else self.print_ir_after

    def _claim_place(self, source: ModelSource) -> Seen | None:
        """Check that the directory can be made and replaces nothing that is read, and begin to hash the source in the
        background."""
        reads = {"--plan": self.plan, **paths_of("--calib", self.calib), **paths_of("--data", self.data)}
        seen, files = None, {"--scores": self.scores}
        if self.out is not None:
            again: dict[str, Any] = {"force": self.force, "resume": self.resume}
            seen = claim(Path(self.out), **again, source=source.origin, reads=reads, files=files)
        else:
            check_apart(reads={"MODEL": source.origin, **reads}, files=files)
        if self.scores is not None:
            clear_partial(Path(self.scores).expanduser())
        if not self.dry_run:
            begin_source_digests(source.origin)
        return seen

    def _check_writable(self, source: ModelSource, config: Any) -> None:
        """Refuse a model whose own code cannot be written with it, if anything is to be written."""
        own = source.consent.code and getattr(config, "auto_map", None)
        if not own or self.out is None or self.dry_run:
            return
        model = build_meta(config, consent=source.consent, buffers=True)
        check_writable(model, source.consent)
        if lost := lost_when_loaded(model):
            graph = ModelCall(config, self.example).trace(build_meta(config, consent=source.consent)).graph
            refuse_lost(model, lost, {held.name for held in graph.parameters} | {held.name for held in graph.constants})

    def _placed(self, source: ModelSource, config: Any, pipeline: Sequence[Pass]) -> Placement:
        """Where the passes run; without one that runs the model, weights are read from the files one at a time."""
        if not any(step.loads_model for step in pipeline):
            place(self.place)  # refuses a device that is not there
            return STREAMED
        return place_model(self.place, source, config, forward=largest_forward(pipeline), sums=True)

    def _stages(self, task: _Task, placement: Placement, *, asked: bool) -> Stages | None:
        """Where the state after every pass is kept; None when nothing will be written."""
        if self.out is None or self.dry_run:
            return None
        own: dict[str, Any] = {"dtype": str(placement.dtype)}
        own["scores"] = None if self.scores is None else str(self.scores)
        own["form"] = self.form if self.form == "uniform" else None  # under it, passes pick other counts
        own["reading of rows"] = self.readings.to_json()
        own["larger"] = None if self.sizes is None else self.sizes.larger  # of which this is a part
        run = identity(
            task.source, task.pipeline, task.texts, example=named_example(self.example), loss=self.loss, **own
        )
        stages = Stages(Path(self.out), task.pipeline, run, asked=asked, progress=self.progress)
        self.ranks.agree({"the number of passes that --resume finds done": str(stages.done)})
        return stages


@dataclass(frozen=True)
class _Task:
    """What a request comes to.

    Attributes:
        source: the model.
        pipeline: the passes that run.
        texts: as they were given.
        inputs: the data sets among them that are no text.
        model_call: how the model is called.
        recorded: the plan that is replayed; None without one.
        scores: saved ones; None without.
        weights: whether any are wanted.
    """

    source: ModelSource
    pipeline: tuple[Pass, ...]
    texts: Texts
    inputs: Mapping[str, DataSet]
    model_call: ModelCall
    recorded: Recorded | None
    scores: ScoreCache | None
    weights: bool


@on_every_rank
def apply(
    model: Model,
    passes: str | Sequence[str] = (),
    *,
    plan: str | Path | None = None,
    out: str | Path | None = None,
    ratio: float | str | None = None,
    layers: tuple[int, int] | str | None = None,
    within: str | None = None,
    seed: int | str | None = None,
    multiple_of: int | str | None = None,
    runtime: str | None = None,
    target: str | None = None,
    tolerance: float | str | None = None,
    channels: bool | str | None = None,
    train_on: str | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    calib: GivenData | None = None,
    data: GivenData | None = None,
    field: GivenReading = None,
    split: GivenReading = None,
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
    merge_adapter: bool = False,
    print_ir_after: str | Sequence[str] = (),
    progress: Progress = silent,
    ranks: Ranks = ALONE,
    sizes: NestedSizes | None = None,
) -> Applied:
    """Run :class:`ApplyRequest`: ``shared`` is ``ratio`` to ``train_on``, ``place`` ``device`` to ``max_memory``."""
    where = PlacementRequest.parse(device=device, dtype=dtype, offload=offload, max_memory=max_memory)
    shared = dict(ratio=ratio, layers=layers, within=within, seed=seed, multiple_of=multiple_of, runtime=runtime,
        target=target, tolerance=tolerance, channels=channels, train_on=train_on)  # fmt: skip
    return ApplyRequest(model=model, passes=passes, plan=plan, out=out, shared=shared, tokenizer=tokenizer, calib=calib,
        data=data, readings=Readings.parse(field, split), scores=scores, example=example, loss=loss, force=force,
        resume=resume, dry_run=dry_run, form=form, place=where, trust_remote_code=trust_remote_code,
        allow_pickle=allow_pickle, merge_adapter=merge_adapter, print_ir_after=print_ir_after, progress=progress,
        ranks=ranks, sizes=sizes).run()  # fmt: skip
