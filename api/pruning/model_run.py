"""A model on its way through a pipeline: loaded, traced, pruned, and written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from ...backends.atomic_directory import SCRATCH
from ...backends.graph_module import constants_of
from ...backends.huggingface.save import Form, SavedModel, SaveRequest, save
from ...backends.huggingface.streamed_weights import stored_tensors
from ...backends.huggingface.synthetic_weights import SyntheticWeights, sampled_products
from ...backends.seen import Seen
from ...backends.verify import Reference
from ...ir.cost import inputs_of, macs
from ...ir.graph import Graph
from ...ir.groups import Group
from ...ir.plan import Plan
from ...ir.verifier import verify
from ...passes.base import Pass
from ...passes.couple.computed_constants import freeze_computed, freeze_fixed
from ...passes.couple.coupling import Coupling, couple
from ...passes.couple.ordered_units import mark_ordered
from ...passes.data import TokenCut, Weights
from ...passes.halfway import Halfway
from ...passes.manager import Analysis, StepRecord, run_pipeline
from ...passes.model.measure import parameter_count
from ...passes.pipeline import print_pipeline
from ...passes.registry import brought
from ...passes.score_cache import ScoreCache as SavedScores
from ...passes.shrink.graph import extents_by_module
from ...passes.sizes import NestedSizes
from ...passes.state import State, Subject
from ...runtime.place.placement import STREAMED, WHOLE, Placement, whole
from ...runtime.ranks import ALONE, Ranks
from ...runtime.scratch import ScratchDirectory
from ...runtime.streaming.blocks import BlockList
from ...runtime.streaming.residence import give_back_memory
from ...runtime.streaming.store import InMemory, Store
from ...runtime.tensors import tensors_by_name
from ...tracer.export import Traced
from ...tracer.inputs.input_set import DataSet
from ...tracer.inputs.users_loss import named_losses
from ...tracer.model import ModelSource, build_meta, load_model
from ..inputs.reading import Readings
from ..inputs.seen_inputs import AsGiven, Tracked, tracked_data
from ..inputs.seen_texts import Entries, read_so_far, record_of
from ..inputs.usable_texts import check_texts
from ..model_call import ModelCall
from ..placing import checkpoint_of, stored_dtype
from ..progress import Progress
from ..request_checks import CALIBRATION, RECOVERY
from .adapters import without_adapter, write_adapters
from .group_change import GroupChange
from .kept_tokens import KeptTokens
from .memory_use import MemoryUse
from .plain_form import PlainForm
from .recorded_plan import Recorded, origin_of
from .result import Applied
from .resume import Parts, Stages
from .stored_precision import StoredDtypes, any_loses_digits, as_stored, rounded_as_stored, take_unchanged
from .stored_state import StoredState
from .streamed_model import StreamedModel, open_streamed_model

OLDEST = 2
"""The oldest generation of Python's garbage collector: gradients and graphs of a pass may wait in it."""


class ModelRun:
    """A model of transformers on its way through a pipeline; it is the host of the passes.

    Attributes:
        rebuild: no module but the model itself will do.
        halfway: where the pass that runs may keep how far it got.
    """

    rebuild: None = None
    _folder: ScratchDirectory | None = None

    def __init__(
        self,
        source: ModelSource,
        pipeline: Sequence[Pass] | None,
        model_call: ModelCall,
        progress: Progress,
        *,
        placement: Placement = WHOLE,
        out: Path | None = None,
        ranks: Ranks = ALONE,
        form: Form = "auto",
    ) -> None:
        """Load and trace a model.

        Args:
            source: the model.
            pipeline: the passes that will run; None when no weights are needed.
            model_call: how the model is called.
            progress: called with a message when a new step begins.
            placement: where it runs.
            out, form: what is written, if anything; under ``uniform``, passes pick counts that a plain config can say.
            ranks: the processes that share the work.

        Raises: RequestError: the placement is none that a run of the whole model can have.
        """
        self.source, self.model_call, self.progress, self.placement = source, model_call, progress, placement
        self._out, self._runs = out, pipeline is not None
        progress(f"loading {source.name}")
        self.config = model_call.config
        self.checkpoint = None if pipeline is None else checkpoint_of(source)
        module = self._opened(pipeline)
        progress(f"tracing {source.name}")
        with self._comparable(module):
            self.traced: Traced = model_call.trace(module)
        self.before = (parameter_count(module), macs(self.traced.graph))
        self.shapes = {parameter.name: parameter.value.shape for parameter in self.traced.graph.parameters}
        if self.streamed is not None:
            self.traced.refuse_written()
        residence = None if self.streamed is None else self.streamed.residence
        subject = Subject(self.traced.graph, module, example=self.traced.example, residence=residence)
        self.state = State(subject, host=self, ranks=ranks)
        self.quantities: frozenset[tuple[int, int]] = frozenset()
        self.halfway: Halfway | None = None
        self.why_not_plain = PlainForm(self).why_not if form == "uniform" else None
        self.storage = MemoryUse(self)
        self.groups: dict[str, Group] = {}
        self.recorded: Recorded | None = None
        self.texts: dict[str, Tracked | None] = {}
        self.words = KeptTokens(source)

    def _opened(self, pipeline: Sequence[Pass] | None) -> Any:
        """The module: with its weights, or on the meta device where they stay elsewhere or there are none. Whatever the
        placement, it is traced and compared with its graph on the CPU, in float32."""
        source, placement = self.source, self.placement
        opened = open_streamed_model(
            source, self.config, self.checkpoint, pipeline or (), placement=placement, scratch=self.scratch,
            language=self.model_call.language, progress=self.progress,
        )  # fmt: skip
        self.streamed = opened if isinstance(opened, StreamedModel) else None
        self.synthetic: SyntheticWeights | None = None
        self.files: Store | None = None
        self.dtypes = StoredDtypes(stored_dtype(self.checkpoint, self.config))
        self._loaded_because = ""
        if self.streamed is not None:
            self.synthetic = self.streamed.synthetic
        if self.streamed is not None or pipeline is None:
            return self.streamed.module if self.streamed else build_meta(self.config, consent=source.consent)
        if isinstance(opened, str) and opened:
            self.progress(f"all weights are loaded: {opened}")
            self._loaded_because = opened if placement != STREAMED else ""
        self.placement = placement = whole(placement, opened if isinstance(opened, str) else "")
        module = load_model(source, dtype=placement.dtype, device=placement.device)
        give_back_memory(placement.device)
        if not placement.plain:
            self.synthetic = SyntheticWeights(module)
        self.dtypes = StoredDtypes.of(self.checkpoint, module, self.dtypes.dtype)
        if self.checkpoint is not None and any_loses_digits(placement.dtype, self.checkpoint):
            self.files = Store(stored_tensors(self.checkpoint, module), InMemory())
        return module

    def read(
        self,
        pipeline: Sequence[Pass],
        texts: Mapping[str, AsGiven],
        inputs: Mapping[str, DataSet],
        *,
        loss: str | Callable[[torch.nn.Module], torch.Tensor] | None,
        recorded: Recorded | None,
        scores: SavedScores | None,
        sizes: NestedSizes | None = None,
        readings: Readings,
    ) -> None:
        """Give the passes what they read: texts, a loss, a plan, saved scores, what other sizes of the model keep."""
        self.state.data.sizes = sizes
        self.state.subject.outputs = () if self.model_call.language else self.traced.outputs
        self.state.data.losses = named_losses(loss)
        self.state.ledger.scores = scores
        self.recorded = recorded
        if recorded is not None:
            recorded.check_source(self.shapes, self.before[0])
        if any(step.needs_weights or step.reads_tokens for step in pipeline):
            self.progress("reading data")
            self.read_texts(texts, inputs, readings)
            check_texts(pipeline if self.model_call.language else (), self.state.data)

    def read_texts(self, texts: Mapping[str, AsGiven], inputs: Mapping[str, DataSet], readings: Readings) -> None:
        """Tokenize texts and try other inputs on the model."""
        runner, language = self.state.subject.runner, self.model_call.language
        found = self.texts = tracked_data(texts, inputs, runner, self.source, language=language, readings=readings)
        self.state.data.calibration, self.state.data.recovery = found.get(CALIBRATION), found.get(RECOVERY)

    def _read(self) -> Entries:
        replayed = self.recorded.record if self.recorded is not None else {}
        return read_so_far(self.texts, record_of(self.source.directory), replayed)

    def run(
        self, pipeline: Sequence[Pass], show: Callable[[StepRecord, State], None], stages: Stages | None
    ) -> Applied:
        steps: list[StepRecord] = []
        done = stages.done if stages is not None else 0
        analyses = (Analysis("couple", "coupling", self._couple),)
        self.state.data.recorded = self.recorded.slices if self.recorded is not None else None
        if stages is not None and done:
            steps += self._resume(stages, pipeline, analyses)
            self.state.ranks.barrier()  # before rank 0 puts another stage in its place
        resumed = print_pipeline(pipeline[done - 1 : done]) if done else ""

        def between(step: StepRecord, state: State) -> None:
            steps.append(step)
            show(step, state)
            give_back_memory(self.placement.device, OLDEST)

        def keep(number: int) -> None:
            if stages is not None and number and self.state.ranks.first:
                rest = pipeline[done + number :]
                stages.keep(done + number, self.state.ledger.finished, lambda: self._parts(steps, rest))

        def announce(text: str, number: int, count: int) -> None:
            keep(number - 1)
            if stages is not None:
                self.halfway = stages.halfway(done + number)
            self.progress(f"{text} ({done + number} of {done + count})")

        left = pipeline[done:]
        if left or not done:
            run_pipeline(
                left, self.state, analyses=analyses, verify=verify, between=between, announce=announce,
                resumable=stages is not None,
            )  # fmt: skip
        keep(len(left))
        after = (parameter_count(self.state.subject.model), macs(self.state.subject.graph))
        texts = print_pipeline(pipeline), print_pipeline(pipeline, defaults=True)
        report = {name: without_adapter(entry) for name, entry in self.state.ledger.report.items()}
        parameters, multiplications = zip(self.before, after, strict=True)
        return Applied(
            self.source.name, *texts, "", parameters, multiplications, self._changes(), tuple(steps), report,
            self._read(), None, resumed, brought(pipeline), self.placement, self._whole(), inputs_of(self.traced.graph),
        )  # fmt: skip

    def _whole(self) -> dict[str, str]:
        """What could not run block by block -> why."""
        if self.placement == STREAMED:  # nothing ran
            return {}
        if self._loaded_because:
            return {"": self._loaded_because}
        lists = self.streamed is None or BlockList.of(self.state.subject.model).modules
        return {**self.state.subject.whole, **({} if lists else {"": "it has no list of blocks"})}

    def _parts(self, steps: Sequence[StepRecord], rest: Sequence[Pass]) -> Parts:
        """What a stage holds; ``rest``: the passes that have not run."""
        texts = {part: text.pieces_read for part, text in self.texts.items() if text is not None}
        state = StoredState.of(self.state, rest).to_json()
        return {"state": state, "steps": [step.to_json() for step in steps], "texts": texts}

    def _resume(self, stages: Stages, pipeline: Sequence[Pass], analyses: Sequence[Analysis]) -> Sequence[StepRecord]:
        """Restore a stage; returns the steps that ran before it."""
        stored, steps = stages.read(self._decoded)
        with stages.resuming():
            stored.restore(self.state, pipeline[: stages.done], pipeline[stages.done :], analyses)
        return steps

    def _decoded(self, parts: Parts) -> tuple[StoredState, list[StepRecord]]:
        for part, pieces in parts["texts"].items():
            if (text := self.texts.get(part)) is not None:
                text.remember(pieces)
        return StoredState.from_json(parts["state"]), [StepRecord(**step) for step in parts["steps"]]

    def _comparable(self, module: torch.nn.Module) -> AbstractContextManager[None]:
        """Inside, a module computes on the CPU in float32: on its own weights if they are there so, else on synthetic
        ones."""
        return nullcontext() if self.synthetic is None else self.synthetic.standing_in(module)

    def _couple(self, graph: Graph) -> Coupling:
        """The coupling for a model that will be saved: units that its own code numbers or computes with are frozen."""
        model = self.state.subject.model
        with self._comparable(model):
            constants = constants_of(graph, tensors_by_name(model), self.traced.constants)
        coupling = freeze_fixed(couple(graph), model)
        coupling = freeze_computed(coupling, constants, model.state_dict(keep_vars=True).keys())
        coupling = mark_ordered(coupling, constants, dict(model.named_buffers()))
        for name, group in coupling.groups.items():
            self.groups.setdefault(name, group)  # the group before anything was removed
        return coupling

    def _changes(self) -> tuple[GroupChange, ...]:
        kept = [(self.groups[name], len(units)) for name, units in (self.state.ledger.plan or Plan()).keep.items()]
        return tuple(GroupChange(g.name, g.kind.value, g.layer, g.units, count) for g, count in kept)

    def save(self, out: Path, applied: Applied, *, form: Form, force: bool, seen: Seen | None = None) -> SavedModel:
        """Write a Hugging Face model directory, in the dtype of the source."""
        subject, ledger = self.state.subject, self.state.ledger
        plan = (ledger.plan or Plan()).renamed(ledger.renamed).measured(self.shapes)  # with the names of the source
        if self.streamed is None:
            reference = self._in_stored_precision(plan)
            values = None
        else:
            reference = None
            values = self.streamed.values(self.model_call.inputs, self._graph_logits)
        return save(
            SaveRequest(
                model=subject.model,
                out=out,
                source=self.source.directory,
                consent=self.source.consent,
                plan=plan,
                repairs=ledger.repairs,
                quantities=self.quantities | self._changed_extents(),
                reference=reference,
                values=values,
                report=applied.to_record(),
                form=form,
                force=force,
                seen=seen,
                origin=origin_of(self.source, self.recorded),
                extra=lambda folder: write_adapters(self.state.ledger.report, folder),
                companions=self.words.write if self.words.cut else None,
            )
        )

    def _in_stored_precision(self, plan: Plan) -> Reference:
        """Convert the model to the dtype of the source; returns what it must give in float32 after that."""
        model, dtypes, renamed = self.state.subject.model, self.dtypes, self.state.ledger.renamed
        if self.files is None and self.placement.plain:  # as it is in float32, the graph runs without a copy of it
            rounded_as_stored(model, dtypes, renamed)
            reference = self.model_call.reference(self.state.subject.graph, self.traced, model)
            as_stored(model, dtypes, renamed)
            return reference
        as_stored(model, dtypes, renamed)
        if self.files is not None:
            take_unchanged(model, self.files, self.placement.dtype, plan, renamed)
        return self.model_call.reference(self.state.subject.graph, self.traced, model)

    @property
    def weights(self) -> Weights | None:
        """Of a model that is larger than memory, from its files."""
        return None if self.streamed is None else self.streamed.weights.read

    @property
    def execute(self) -> Callable[[Graph, torch.nn.Module], tuple[torch.Tensor, torch.Tensor]] | None:
        """Runs a graph and a module; None for a configuration alone."""
        return self._execute if self._runs else None

    def retrace(self, model: torch.nn.Module) -> tuple[Graph, Mapping[str, Any]]:
        """Trace a model that a pass has changed, and remember the extents that have changed so far."""
        self.quantities |= self._changed_extents()
        with self._comparable(model):
            self.traced = self.model_call.trace(model)
        return self.traced.graph, self.traced.example

    def _changed_extents(self) -> frozenset[tuple[int, int]]:
        return extents_by_module(self.traced.graph, self.state.subject.graph).get("", frozenset())

    def _execute(self, graph: Graph, module: torch.nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
        """The outputs of a graph and of a module with the same weights, on the same inputs, in float32."""
        if self.synthetic is None:
            return self._both(graph, module)
        if self.streamed is not None:
            with sampled_products():
                expected = self.model_call.run_graph(graph, self.traced, module, self.synthetic.tensors(module))
            return expected[0], self.synthetic.logits(module, self.model_call.inputs)
        with self._comparable(module), sampled_products():
            return self._both(graph, module)

    def _both(self, graph: Graph, module: torch.nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
        found = self.model_call.run_graph(graph, self.traced, module), self.model_call.run(module, self.traced)
        graphs, modules = (torch.cat([tensor.float().flatten() for tensor in tensors]) for tensors in found)
        return graphs, modules

    def _graph_logits(self, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        subject = self.state.subject
        return self.model_call.run_graph(subject.graph, self.traced, subject.model, tensors)[0]

    @property
    def tokenizer(self) -> Any:
        """The tokenizer in the model's directory."""
        return self.words.tokenizer

    def tokens_kept(self, cut: TokenCut) -> None:
        """Renumber the texts, the example inputs and, when it is written, the tokenizer."""
        self.groups.setdefault(cut.group.name, cut.group)
        self.words.keep(cut, self.texts, self.state.data)
        self.model_call.renumber(cut)

    def scratch(self) -> Path:
        """A directory for weights that passes change and other large files of theirs, beside what will be written; it
        goes with :meth:`close`."""
        if self._folder is None:
            beside = self._out.resolve().parent if self._out is not None else None
            self._folder = ScratchDirectory(SCRATCH, beside=beside)
        return self._folder.path

    def close(self) -> None:
        """Remove weights that passes changed, and a smaller tokenizer, from the disk."""
        self.words.close()
        if self._folder is not None:
            self._folder.remove()
            self._folder = None
