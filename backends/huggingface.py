"""Pruned models as plain Hugging Face directories: written beside the target, reloaded elsewhere, moved into place."""

from __future__ import annotations

import fnmatch
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import safetensors
import torch
import transformers
from transformers import PreTrainedConfig, PreTrainedModel

from ..ir.errors import FxpruneError, RequestError
from ..ir.plan import Plan
from ..ir.repairs import Repairs
from ..runtime.absence import absences
from .artifact import RECORD, atomic_directory, check_target, write_json, write_plan
from .config_search import find_config, model_shapes
from .digests import digests, source_digests
from .free_form import ENTRY, MODULE, base_class, free_class, free_config, plain_config, write_code
from .values import Held, Values
from .verify import FreshProcess, Reference, VerificationError

Form = Literal["auto", "uniform", "free"]

SHARD_SIZE = "5GB"
COMPANIONS = (
    "tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "*.model",
    "*.tiktoken", "chat_template*", "*.jinja", "generation_config.json", "preprocessor_config.json",
    "processor_config.json", "LICENSE*",
)  # fmt: skip
"""Files of the source that stay true of the smaller model: tokenizer, generation, processing, licence."""

USUAL = (
    "AutoModelForCausalLM", "AutoModelForSeq2SeqLM", "AutoModelForImageTextToText",
    "AutoModelForSequenceClassification", "AutoModelForMaskedLM", "AutoModelForTokenClassification",
    "AutoModelForQuestionAnswering", "AutoModelForImageClassification", "AutoModel",
)  # fmt: skip
AUTO_CLASSES = (
    *USUAL,
    *(name for name in sorted(dir(transformers)) if name.startswith("AutoModelFor") and name not in USUAL),
)
"""Searched in this order for the one that maps a configuration to the class that was pruned: several may."""


@dataclass(frozen=True)
class Saved:
    """What was written.

    Attributes:
        path: the directory.
        form: ``uniform`` (a plain config describes it) or ``free`` (it carries a modelling file).
        model_type: of its configuration.
        retargeted: the architecture it was and is, and why; "" when it stayed.
        why_free: why no plain configuration was used; "" for the uniform form.
        config_changes: dotted config field -> (before, now), for the uniform form.
        checks: what the fresh process found.
    """

    path: Path
    form: Literal["uniform", "free"]
    model_type: str
    retargeted: str = ""
    why_free: str = ""
    config_changes: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    checks: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As JSON data."""
        return {**asdict(self), "path": str(self.path)}


def save(
    model: PreTrainedModel,
    out: Path,
    *,
    source: Path | None,
    plan: Plan,
    repairs: Repairs,
    quantities: Iterable[tuple[int, int]],
    report: Mapping[str, Any],
    reference: Reference | None = None,
    values: Values | None = None,
    form: Form = "auto",
    force: bool = False,
    shard_size: str = SHARD_SIZE,
    origin: Mapping[str, str] | None = None,
    extra: Callable[[Path], None] | None = None,
) -> Saved:
    """Write a shrunken model as a directory that transformers loads, and check that it does.

    Args:
        model: shrunk in place, its config still the source's; weights in the dtype in which they are to be stored,
            unless ``values`` has them.
        out: the directory to be; it appears complete or not at all.
        source: the directory that the model was read from, whose tokenizer and generation files are copied.
        plan: what was cut; written as ``plan.safetensors``.
        repairs: what ``shrink_module`` returned.
        quantities: (old, new) of the extents of the whole graph (``extents[""]``), for the configuration search.
        report: entries for ``fxprune.json`` beside its own (pipeline, groups before and after, renamed tensors, ...).
        reference: inputs, and the logits that the rewritten graph gives on them in float32; not with ``values``.
        values: where the values of the tensors are, when the module does not hold them.
        form: ``auto`` takes the uniform form where a configuration describes the model, else the free one.
        force: replace an artifact that is there.
        shard_size: as in ``save_pretrained``.
        origin: sha256 of the source's weight files, when they are known already.
        extra: writes further files into the directory before it is complete.

    Raises:
        RequestError: before any work, when ``out`` cannot be written, or when ``form`` is ``uniform`` and no plain
            configuration describes the model.
        FxpruneError: when writing fails.
        VerificationError: when the written model is not the one that was to be written; ``out`` is as before.
    """
    if form not in ("auto", "uniform", "free"):
        raise RequestError(f"unknown form '{form}'", "forms are auto, uniform and free")
    if values is None:
        assert reference is not None, "a model that holds its values needs a reference"
        values = Held(model, reference)
    check_target(out, force=force, source=source, needed=values.size(model))
    was_training = model.training
    model.eval()

    def written(design: _Design, fresh: FreshProcess | None = None) -> Saved:
        with atomic_directory(out, force=force) as folder:
            known = _write(model, folder, source, design, values=values, shard_size=shard_size)
            write_plan(folder, plan)
            checks = values.check(folder, design.auto_class, design.form == "free", source, fresh)
            saved = design.saved(out, checks)
            if extra is not None:
                extra(folder)
            record = _record(saved, source, report, origin)
            write_json(folder / RECORD, {**record, "files": digests(folder, known=known)})
        return saved

    try:
        with FreshProcess() as fresh:  # what it imports takes as long as much of what comes before its turn
            design = _design(model, plan, repairs, quantities, values, form=form)
            try:
                return written(design, fresh)
            except VerificationError as error:
                if form != "auto" or design.form == "free":
                    raise
                # Heads of another size may hide from the search where a model's attention is nearly flat.
                why = f"the plain configuration that gives these shapes did not pass: {error.message}"
                return written(replace(_design(model, plan, repairs, quantities, values, form="free"), why_free=why))
    finally:
        model.train(was_training)


def load(path: Path, *, dtype: torch.dtype | Literal["auto"] = "auto") -> PreTrainedModel:
    """Load an artifact of either form; the free one by fxprune's own code, without trusting the file beside it.

    Raises:
        RequestError: when there is no model of a class of transformers.
        FxpruneError: when its tensors do not fit its configuration.
    """
    if not (path / "config.json").is_file():
        raise RequestError(f"{path / 'config.json'} does not exist", "name a model directory")
    try:
        config = transformers.AutoConfig.from_pretrained(path)
        base = getattr(transformers, (config.architectures or ["none named"])[0], None)
    except (ValueError, OSError) as error:
        raise RequestError(f"{path / 'config.json'} is damaged: {error}", "write the artifact again") from error
    if base is None:
        raise RequestError(
            f"{path / 'config.json'} names no class of transformers: {config.architectures}", "set its 'architectures'"
        )
    model_class = free_class(base) if hasattr(config, ENTRY) else base
    try:
        model, info = model_class.from_pretrained(path, config=config, dtype=dtype, output_loading_info=True)
    except (RuntimeError, ValueError, OSError, safetensors.SafetensorError) as error:
        raise FxpruneError(f"{path} does not load: {error}", "write the artifact again") from error
    for kind in ("missing_keys", "unexpected_keys"):
        if info[kind]:
            names = ", ".join(sorted(info[kind])[:3])
            raise FxpruneError(f"{path} has {kind.replace('_', ' ')}: {names}", "write the artifact again")
    loaded: PreTrainedModel = model
    return loaded


def auto_class_of(model_class: type[PreTrainedModel]) -> str:
    """Name of the Auto class that loads a class of transformers; its own where there is none, as for the text part of a
    larger model."""
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
    """What will be written beside the weights."""

    form: Literal["uniform", "free"]
    config: PreTrainedConfig
    model_class: type[PreTrainedModel]
    auto_class: str
    retargeted: str = ""
    why_free: str = ""
    changes: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)

    def saved(self, out: Path, checks: Mapping[str, Any]) -> Saved:
        """What was written by it."""
        model_type: str = self.config.model_type
        return Saved(out.resolve(), self.form, model_type, self.retargeted, self.why_free, self.changes, checks)


def _design(
    model: PreTrainedModel,
    plan: Plan,
    repairs: Repairs,
    quantities: Iterable[tuple[int, int]],
    values: Values,
    *,
    form: Form,
) -> _Design:
    base = base_class(model)
    why = "asked for"
    if form != "free":
        source = plain_config(model.config)
        accept = values.same_function(model)
        match, why = None, f"{next(iter(absences(model)), '')} is absent"
        if not absences(model):
            match, why = find_config(source, base, model_shapes(model), quantities, accept=accept)
        if match is not None:
            note = ""
            if match.retarget is not None:
                note = f"{match.retarget.source} to {match.retarget.target}: {match.retarget.why}"
            auto = auto_class_of(match.model_class)
            return _Design("uniform", match.config, match.model_class, auto, note, "", match.changes)
        if form == "uniform":
            raise RequestError(f"no plain configuration describes the smaller model: {why}", "allow the free form")
    auto = auto_class_of(base)
    if auto not in AUTO_CLASSES:  # its own file is found by an Auto class that does not know it
        auto = "AutoModelForCausalLM" if model.can_generate() else "AutoModel"
    return _Design("free", free_config(model, plan, repairs, auto), base, auto, "", why)


def _write(
    model: PreTrainedModel, folder: Path, source: Path | None, design: _Design, *, values: Values, shard_size: str
) -> Mapping[str, str]:
    """Weights, configuration, code and companion files; the digests that are known of them."""
    known = values.write(model, folder, plain=design.form == "uniform", shard_size=shard_size)
    design.config.architectures = [design.model_class.__name__]
    design.config.dtype = str(values.dtype).removeprefix("torch.")
    design.config.to_json_file(folder / "config.json", use_diff=True)
    code = folder / f"{MODULE}.py"
    code.unlink(missing_ok=True)
    if design.form == "free":
        absent = bool(absences(model))
        write_code(folder, design.model_class.__name__, design.auto_class, version("fxprune"), absent=absent)
    for path in sorted(source.iterdir()) if source is not None and source.is_dir() else ():
        if path.is_file() and any(fnmatch.fnmatch(path.name, pattern) for pattern in COMPANIONS):
            shutil.copyfile(path, folder / path.name)
    return known


def _record(
    saved: Saved, source: Path | None, report: Mapping[str, Any], known: Mapping[str, str] | None
) -> dict[str, Any]:
    """The contents of ``fxprune.json``. No absolute path and no time: the same run gives the same bytes."""
    origin = None
    if source is not None:
        weights = known if known is not None else source_digests(source)
        origin = {"name": source.resolve().name, "sha256": dict(weights)}
    return {
        "versions": {name: version(name) for name in ("fxprune", "torch", "transformers", "safetensors")},
        "source": origin,
        **report,
        "form": saved.form,
        "why_free": saved.why_free,
        "model_type": saved.model_type,
        "retargeted": saved.retargeted,
        "config_changes": {name: list(change) for name, change in saved.config_changes.items()},
        "checks": dict(saved.checks),
    }
