"""Write a pruned model as a Hugging Face model directory, and check it in another process before it is in place."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from transformers import PreTrainedConfig, PreTrainedModel

from ...ir.errors import FxpruneError, RequestError, class_and_first_line
from ...ir.plan import Plan
from ...ir.repairs import Repairs
from ...runtime.absence import absences
from ...runtime.adapter_files import refuse_adapter
from ...runtime.config_file import check_built, read_config
from ...runtime.consent import Consent
from ...runtime.model_directory.pickles import pickles_read
from ...runtime.size_limits import SizeLimit, limited
from ..artifact import RECORD, write_json, write_plan
from ..atomic_directory import atomic_directory, check_room, check_target
from ..copied_files import CopiedFiles, companions, copy_files
from ..digests import digests, source_digests
from ..seen import Seen
from ..verify import FreshProcess, Job, Reference, VerificationError
from .config_search import find_config, model_shapes
from .free_form import CONFIG_ENTRY, base_class, free_class, free_config, plain_config, write_code
from .synthetic_weights import meta_model
from .weight_source import InMemoryWeights, WeightSource

Form = Literal["auto", "uniform", "free"]

SHARD_SIZE = "5GB"
USUAL = (
    "AutoModelForCausalLM", "AutoModelForSeq2SeqLM", "AutoModelForImageTextToText",
    "AutoModelForSequenceClassification", "AutoModelForMaskedLM", "AutoModelForTokenClassification",
    "AutoModelForQuestionAnswering", "AutoModelForImageClassification", "AutoModel",
)  # fmt: skip
AUTO_CLASSES = (
    *USUAL,
    *(name for name in sorted(dir(transformers)) if name.startswith("AutoModelFor") and name not in USUAL),
)
"""The Auto classes in the order in which they are searched: several may load the same class."""


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


def load(path: Path, *, dtype: torch.dtype | Literal["auto"] = "auto") -> PreTrainedModel:
    """Load an artifact of either form. The free form is loaded without running its modelling file.

    Raises:
        RequestError: the directory has no model of a class of transformers, or an adapter that would be loaded too.
        FxpruneError: the tensors do not fit the configuration.
    """
    refuse_adapter(path, "merge the adapter first, or remove its files")
    model_class, config = _class_in(path)
    try:
        with limited(SizeLimit.of_files(path.glob("model*.safetensors"))), pickles_read(False):
            model, info = model_class.from_pretrained(
                path, config=config, dtype=dtype, output_loading_info=True, use_safetensors=True, **no_code(path)
            )
    except FxpruneError:
        raise
    except Exception as error:  # of any class: the entries of its configuration are read by the model's own code
        raise FxpruneError(f"cannot load {path}: {class_and_first_line(error)}", "write the artifact again") from error
    for kind in ("missing_keys", "unexpected_keys"):
        if info[kind]:
            names = ", ".join(sorted(info[kind])[:3])
            raise FxpruneError(f"{path} has {kind.replace('_', ' ')}: {names}", "write the artifact again")
    loaded: PreTrainedModel = model
    return loaded


def no_code(path: Path) -> dict[str, bool]:
    """What transformers is told about a directory of which no code runs."""
    return Consent.nothing(path).keywords(path)


def load_without_weights(path: Path) -> PreTrainedModel:
    """An artifact of either form with its parameters on the meta device, float32, and buffers with values.

    Raises:
        RequestError: as :func:`load`.
    """
    return meta_model(*_class_in(path))


def _class_in(path: Path) -> tuple[type[PreTrainedModel], PreTrainedConfig]:
    """The class of the model in a directory, and its configuration."""
    if not (path / "config.json").is_file():
        raise RequestError(f"{path / 'config.json'} does not exist", "give a model directory")
    read_config(path / "config.json", "write the artifact again")
    try:
        config = transformers.AutoConfig.from_pretrained(path, **no_code(path))
        check_built(config, path / "config.json")
        base = getattr(transformers, (config.architectures or ["none named"])[0], None)
    except FxpruneError:
        raise
    except Exception as error:  # likewise
        raise RequestError(
            f"{path / 'config.json'} is damaged: {class_and_first_line(error)}", "write the artifact again"
        ) from error
    if base is None:
        raise RequestError(
            f"{path / 'config.json'}: 'architectures' is {config.architectures}, which transformers does not know",
            "set 'architectures' to a class of transformers",
        )
    return free_class(base) if hasattr(config, CONFIG_ENTRY) else base, config


def auto_class_of(model_class: type[PreTrainedModel]) -> str:
    """Name of the Auto class that loads a class of transformers. If there is none, as for the text part of a multimodal
    model, the name of the class itself."""
    for name in AUTO_CLASSES:
        mapping = getattr(transformers, name)._model_mapping
        if model_class.config_class in mapping:
            found = mapping[model_class.config_class]
            if model_class in (found if isinstance(found, tuple) else (found,)):
                return name
    if model_class.__module__.startswith("transformers.models."):
        return model_class.__name__
    raise RequestError(f"no Auto class of transformers loads {model_class.__name__}", "prune a model with a task head")


@dataclass(frozen=True)
class _Design:
    """The configuration and the classes with which a model will be written."""

    form: Literal["uniform", "free"]
    config: PreTrainedConfig
    model_class: type[PreTrainedModel]
    auto_class: str
    retargeted: str = ""
    why_free: str = ""
    changes: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)

    def saved(self, out: Path, checks: Mapping[str, Any], written: _Written) -> SavedModel:
        """The result, when the model has been written to ``out``."""
        return SavedModel(
            out.resolve(), self.form, self.config.model_type, self.retargeted, self.why_free, self.changes, checks,
            code={**written.code, **written.copied.code}, copied=written.copied,
        )  # fmt: skip


@dataclass(frozen=True)
class _Written:
    """What :func:`_write` has written.

    Attributes:
        known: file name -> sha256, of those that were computed on the way.
        code: the same, of the modelling file.
        copied: what was copied from the source.
    """

    known: Mapping[str, str]
    code: Mapping[str, str]
    copied: CopiedFiles


def _design(request: SaveRequest, values: WeightSource, *, form: Form) -> _Design:
    model = request.model
    base = base_class(model)
    why = "asked for"
    if form != "free":
        source = plain_config(model.config)
        accept = values.same_function(model)
        match, why = None, f"{next(iter(absences(model)), '')} is absent"
        if not absences(model):
            match, why = find_config(source, base, model_shapes(model), request.quantities, accept=accept)
        if match is not None:
            note = ""
            if match.retarget is not None:
                note = f"{match.retarget.source} to {match.retarget.target}: {match.retarget.why}"
            auto = auto_class_of(match.model_class)
            return _Design("uniform", match.config, match.model_class, auto, note, "", match.changes)
        if form == "uniform":
            raise RequestError(
                f"--form uniform is not possible: no plain configuration describes the pruned model: {why}",
                "use --form free, or --form auto",
            )
    auto = auto_class_of(base)
    if auto not in AUTO_CLASSES:  # with ``auto_map``, an Auto class also loads a class that it does not know
        auto = "AutoModelForCausalLM" if model.can_generate() else "AutoModel"
    return _Design("free", free_config(model, request.plan, request.repairs, auto), base, auto, "", why)


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
        write_json(folder / RECORD, {**_record(saved, request), "files": digests(folder, known=written.known)})
    return saved


def _write(request: SaveRequest, folder: Path, design: _Design, values: WeightSource) -> _Written:
    """Write weights, configuration, code and companion files."""
    model, original = request.model, request.original
    known = values.write(model, folder, plain=design.form == "uniform", shard_size=request.shard_size)
    design.config.architectures = [design.model_class.__name__]
    design.config.dtype = str(values.dtype).removeprefix("torch.")
    design.config.to_json_file(folder / "config.json", use_diff=True)
    for file in folder.glob("*.py"):  # transformers writes the code of a model that had its own
        file.unlink()
    code = {}
    if design.form == "free":
        absent = bool(absences(model))
        code = write_code(folder, design.model_class.__name__, design.auto_class, version("fxprune"), absent=absent)
    copied = CopiedFiles()
    if original is not None and original.directory.is_dir():
        wanted = companions(original.directory)
        copied = copy_files([path for path in wanted if path.name not in code], folder, original)
    return _Written(known, code, copied)


def _record(saved: SavedModel, request: SaveRequest) -> dict[str, Any]:
    """The content of ``fxprune.json``. It has no absolute path and no time, so equal runs give equal bytes."""
    origin, source = None, request.source
    if source is not None:
        weights = request.origin if request.origin is not None else source_digests(source)
        origin = {"name": source.resolve().name, "sha256": dict(weights)}
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
