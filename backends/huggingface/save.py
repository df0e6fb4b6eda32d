"""Write a pruned model as a Hugging Face model directory, and check it in another process before it is in place."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedConfig, PreTrainedModel

from ...ir.errors import RequestError
from ...ir.plan import Plan
from ...ir.repairs import Repairs
from ...runtime.absence import absences
from ...runtime.consent import Consent
from ...runtime.model.free_class import CONFIG_ENTRY
from ...runtime.model.held_values import narrow_values
from ..artifact import RECORD, write_json, write_plan
from ..atomic_directory import atomic_directory, check_room, check_target
from ..copied_files import CopiedFiles, companions, copy_files, other_digests
from ..digests import digests, source_digests
from ..recipe import ASKED_FOR
from ..seen import Seen
from ..verify import FreshProcess, Job, Reference, VerificationError
from .config_search import ConfigMatch, find_config, model_shapes
from .free_form import Headless, free_config, headless, plain_config, without_entries, write_code
from .model_card import write_card
from .model_class import AUTO_CLASSES, MODULE, OwnCode, auto_class_of, base_class, copy_code, own_code, own_reference
from .sentence_modules import copy_sentence_modules
from .serving import unlike_config
from .weight_source import InMemoryWeights, WeightSource

Form = Literal["auto", "uniform", "free"]

SHARD_SIZE = "5GB"


@dataclass(frozen=True, kw_only=True)
class SaveRequest:
    """The pruned model that is written, and to where.

    Attributes:
        model: the model, shrunk in place, with the configuration of the source. Its weights are in the dtype to store,
            unless ``values`` has them.
        out: the directory to write. It appears complete or not at all.
        source: the directory that the model was read from; its tokenizer and generation files are copied.
        consent: what may run of ``source``; nothing when None.
        plan: what was removed; written as ``fxprune.plan``.
        repairs: the result of ``shrink_module``.
        quantities: (old, new) of the extents in the whole graph that changed (``extents[""]``), for the search of a
            configuration.
        report: further entries for ``fxprune.json`` (pipeline, groups before and after, renamed tensors, ...).
        reference: inputs, and the float32 logits of the rewritten graph on them; not with ``values``.
        values: the weights, when the module does not hold them.
        form: ``auto`` uses the uniform form if a configuration describes the model, otherwise the free form.
        force: whether to replace an existing artifact.
        seen: what ``check_target`` found when the run began; None when it is still to be called.
        shard_size: as in ``save_pretrained``.
        origin: sha256 of the weight files of the source, if they are known.
        extra: a function that writes further files into the directory before it is complete.
        companions: a function that changes the files copied from the source, before the model is checked; returns what
            it left out, in words.
    """

    model: PreTrainedModel
    out: Path
    source: Path | None
    plan: Plan
    repairs: Repairs
    quantities: Iterable[tuple[int, int]]
    report: Mapping[str, Any]
    reference: Reference | None = None
    values: WeightSource | None = None
    consent: Consent | None = None
    form: Form = "auto"
    force: bool = False
    seen: Seen | None = None
    shard_size: str = SHARD_SIZE
    origin: Mapping[str, str] | None = None
    extra: Callable[[Path], None] | None = None
    companions: Callable[[Path], Sequence[str]] | None = None

    @property
    def original(self) -> Consent | None:
        """What may run of the source."""
        return Consent.nothing(self.source) if self.consent is None and self.source is not None else self.consent

    def weights(self) -> WeightSource:
        """Where the weights are: in memory, if ``values`` does not say otherwise."""
        if self.values is not None:
            return self.values
        assert self.reference is not None, "a model that holds its values needs a reference"
        return InMemoryWeights(self.model, self.reference)


@dataclass(frozen=True)
class SavedModel:
    """The artifact that was written.

    Attributes:
        path: the directory.
        form: ``uniform`` (a plain config describes it) or ``free`` (it has a modelling file).
        model_type: the ``model_type`` in its configuration.
        retargeted: the architectures before and now, and the reason; "" when the architecture is the same.
        why_free: why no plain configuration was used; "" for the uniform form.
        config_changes: dotted config field -> (before, now), for the uniform form.
        checks: the results of the check in a fresh process.
        code: name -> sha256 of every file in it that runs: the modelling file, and code of the source, which is there
            only if the user allowed it to run.
        copied: what was copied of the source that runs, and what was not copied.
        unlike: what servers cannot read in its configuration, of :data:`.serving.UNLIKE`. Heads are among them where
            the source was in the free form, because it may have lost some.
    """

    path: Path
    form: Literal["uniform", "free"]
    model_type: str
    retargeted: str = ""
    why_free: str = ""
    config_changes: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    checks: Mapping[str, Any] = field(default_factory=dict)
    code: Mapping[str, str] = field(default_factory=dict)
    copied: CopiedFiles = field(default_factory=CopiedFiles)
    unlike: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As JSON data."""
        return {**asdict(self), "path": str(self.path)}


def save(request: SaveRequest) -> SavedModel:
    """Write a pruned model as a directory that transformers loads, and check that it loads and computes the same.

    Raises:
        RequestError: before any work: ``out`` cannot be written, or ``form`` is ``uniform`` and no plain configuration
            describes the model.
        FxpruneError: writing fails.
        VerificationError: the written model does not pass its check; ``out`` is as it was before.
    """
    if request.form not in ("auto", "uniform", "free"):
        raise RequestError(f"unknown --form '{request.form}'", "choose from auto, uniform, free")
    model, values = request.model, request.weights()
    if request.seen is None:
        seen = check_target(request.out, force=request.force, source=request.source, needed=values.size(model))
        request = replace(request, seen=seen)
    else:
        check_room(request.out, values.size(model))
    was_training = model.training
    model.eval()
    try:
        with FreshProcess() as fresh:  # started here, so that its imports run while the model is being written
            design = _design(request, values, form=request.form)
            try:
                return _write_checked(request, design, values, fresh)
            except VerificationError as error:
                if request.form != "auto" or design.form == "free":
                    raise
                # If attention is nearly uniform, the search cannot tell a wrong number of heads from the right one.
                why = f"the plain configuration that gives these shapes did not pass: {error.message}"
                free = replace(_design(request, values, form="free"), why_free=why)
                return _write_checked(request, free, values)
    finally:
        model.train(was_training)


@dataclass(frozen=True)
class _Design:
    """The configuration and the classes with which a model will be written.

    ``again``: whether its source was in the free form.
    """

    form: Literal["uniform", "free"]
    config: PreTrainedConfig
    model_class: type[PreTrainedModel]
    auto_class: str
    retargeted: str = ""
    why_free: str = ""
    changes: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    own: OwnCode = field(default_factory=OwnCode)
    inner: Headless | None = None
    again: bool = False

    def saved(self, out: Path, checks: Mapping[str, Any], written: _Written) -> SavedModel:
        """The result, when the model has been written to ``out``."""
        return SavedModel(
            out.resolve(), self.form, self.config.model_type, self.retargeted, self.why_free, self.changes, checks,
            code={**written.code, **written.copied.code}, copied=written.copied,
            unlike=unlike_config(getattr(self.config, CONFIG_ENTRY, {}), again=self.again),
        )  # fmt: skip


@dataclass(frozen=True)
class _Written:
    """What :func:`_write` has written.

    Attributes:
        known: file name -> sha256, of those that were computed on the way.
        code: the same, of the modelling file and of the code of the model's own, which run when it is loaded.
        copied: what was copied from the source.
    """

    known: Mapping[str, str]
    code: Mapping[str, str]
    copied: CopiedFiles


def _design(request: SaveRequest, values: WeightSource, *, form: Form) -> _Design:
    model = request.model
    base = base_class(model)
    why = ASKED_FOR
    if form != "free":
        match, why = _uniform(request, values)
        if match is not None:
            note = ""
            if match.retarget is not None:
                note = f"{match.retarget.source} to {match.retarget.target}: {match.retarget.why}"
            auto, own = auto_class_of(match.model_class, model.config), _own_code(request, base, free=False)
            if own_reference(base):
                match.config.auto_map = dict(own.auto_map)
            return _Design("uniform", match.config, match.model_class, auto, note, "", match.changes, own)
        if form == "uniform":
            raise RequestError(
                f"--form uniform is not possible: no plain configuration describes the pruned model: {why}",
                "use --form free, or --form auto",
            )
    auto, own = auto_class_of(base, model.config), _own_code(request, base, free=True)
    if auto not in AUTO_CLASSES:  # with ``auto_map``, an Auto class also loads a class that it does not know
        auto = "AutoModelForCausalLM" if model.can_generate() else "AutoModel"
    inner = headless(model)
    auto_map = dict(own.auto_map) or {auto: f"{MODULE}.{base.__name__}"}
    if inner is not None:
        auto_map["AutoModel"] = f"{MODULE}.{inner.model_class.__name__}"
    config = free_config(model, request.plan, request.repairs, auto_map)
    again = hasattr(model.config, CONFIG_ENTRY)
    return _Design("free", config, base, auto, "", why, own=own, inner=inner, again=again)


def _uniform(request: SaveRequest, values: WeightSource) -> tuple[ConfigMatch | None, str]:
    """The plain configuration that describes the model; or None, and why there is none."""
    model = request.model
    if absent := next(iter(absences(model)), ""):
        return None, f"{absent} is absent"
    if narrow := next(iter(narrow_values(model)), ""):
        return None, f"{narrow} makes or reads values that are narrower than the heads"
    source, accept = plain_config(model.config), values.same_function(model)
    return find_config(source, base_class(model), model_shapes(model), request.quantities, accept=accept)


def _own_code(request: SaveRequest, base: type[PreTrainedModel], *, free: bool) -> OwnCode:
    """The code that goes along with a model whose class came with it, by consent."""
    if not own_reference(base):
        return OwnCode()
    consent = request.original
    if consent is None or not consent.code:
        raise RequestError(f"{base.__name__} comes with code that may not run", "pass --trust-remote-code")
    return own_code(request.model.config, base, consent.directory, free=free)


def _write_checked(
    request: SaveRequest, design: _Design, values: WeightSource, fresh: FreshProcess | None = None
) -> SavedModel:
    """Write the directory, and check it before it is moved into place."""
    with atomic_directory(request.out, force=request.force, seen=request.seen) as folder:
        written = _write(request, folder, design, values)
        write_plan(folder, request.plan)
        job = Job(Consent.of_written(folder, written.code), None, design.auto_class)
        checks = values.check(job, request.original, fresh)
        saved = design.saved(request.out, checks, written)
        if request.extra is not None:
            request.extra(folder)  # nosec B610 # writes files; this is no database
        record = _record(saved, request)
        write_card(folder, record, request.source)
        write_json(folder / RECORD, {**record, "files": digests(folder, known=written.known)})
    return saved


def _write(request: SaveRequest, folder: Path, design: _Design, values: WeightSource) -> _Written:
    """Write weights, configuration, code and companion files."""
    model, original = request.model, request.original
    known = values.write(model, folder, plain=design.form == "uniform", shard_size=request.shard_size)
    if not design.own.files or not design.config.architectures:  # for its own code it may name what other programs know
        design.config.architectures = [design.model_class.__name__]
    design.config.dtype = str(values.dtype).removeprefix("torch.")
    if design.own.files:  # what its own class takes when there is no value, that alone knows: all values are written
        write_json(
            folder / "config.json", dict(sorted(without_entries(design.config.to_dict(), "_name_or_path").items()))
        )
    else:
        design.config.to_json_file(folder / "config.json", use_diff=True)
    for file in folder.glob("*.py"):  # transformers writes the code of a model that had its own
        file.unlink()
    code = copy_code(design.own.files, folder)
    copied = CopiedFiles(dict(code), design.own.left_out)
    if design.form == "free":
        code |= write_code(folder, model, design.auto_class, version("fxprune"), design.inner)
    if original is not None and original.directory.is_dir():
        wanted = companions(original.directory)
        copied = copied.and_also(copy_files([path for path in wanted if path.name not in code], folder, original))
        width, was = _widths(model)
        modules = copy_sentence_modules(original.directory, folder, width=width, was=was)
        copied = copied.and_also(CopiedFiles(left_out=tuple(modules)))
    if request.companions is not None:
        copied = copied.and_also(CopiedFiles(left_out=tuple(request.companions(folder))))
    return _Written(known, code, copied)


def _widths(model: PreTrainedModel) -> tuple[int | None, int]:
    """The width of the states that a model gives, as its embeddings show it (None where they have another one), and
    that in the configuration of the source."""
    was = getattr(model.config.get_text_config(), "hidden_size", 0)
    try:
        weight = model.get_input_embeddings().weight
    except (NotImplementedError, AttributeError):  # a model of other inputs
        return None, was
    same = getattr(model.config, "embedding_size", was) == was and weight.dim() == 2
    return (int(weight.shape[1]) if same else None), was


def _record(saved: SavedModel, request: SaveRequest) -> dict[str, Any]:
    """The content of ``fxprune.json``. It has no absolute path and no time, so equal runs give equal bytes."""
    origin, source = None, request.source
    if source is not None:
        weights = request.origin if request.origin is not None else source_digests(source)
        origin = {"name": source.resolve().name, "sha256": dict(weights), "files": other_digests(source)}
    return {
        "versions": {name: version(name) for name in ("fxprune", "torch", "transformers", "safetensors")},
        "source": origin,
        **request.report,
        "form": saved.form,
        "why_free": saved.why_free,
        "model_type": saved.model_type,
        "retargeted": saved.retargeted,
        "config_changes": {name: list(change) for name, change in saved.config_changes.items()},
        "checks": dict(saved.checks),
        "code": dict(saved.code),
        "not_copied": list(saved.copied.left_out),
    }
