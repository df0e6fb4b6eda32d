"""What the result of a run depends on, and what of it has changed since a run that is to be resumed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ...backends.digests import sha256
from ...ir.extras import installed_version
from ...ir.options import options_of, write_value
from ...passes.base import Pass
from ...tracer.input_file import is_input_file
from ...tracer.model import ModelSource
from ..inputs.seen_inputs import AsGiven
from ..request_checks import GivenBatches, GivenFiles, GivenRows

Identity = dict[str, Any]

DECIDING = ("fxprune", "torch", "transformers", "peft")
"""Packages whose versions a result may depend on; the last one comes with an extra."""


_SHOWN = 3
"""How many changes an error lists."""

_FLAGS = {"calibration": "--calib", "recovery": "--data"}
"""Entries of an identity that are not named as the flag that sets them."""

_PLAN = "replay.sha256"
"""The option that stands for the plan file of ``--plan``."""


def identity(source: ModelSource, pipeline: Sequence[Pass], texts: Mapping[str, AsGiven], **options: Any) -> Identity:
    """What a result depends on, as JSON data. Texts count by their bytes, model files by size and time; those of a
    loaded model, which every call writes again, by size and bytes.

    Args:
        source: the model.
        pipeline: the passes, with the value of every option.
        texts: ``calibration`` and ``recovery`` -> data, where some was given; a folder counts by the names, sizes and
            times of its files, a function by its name.
        options: further ones; a function counts by its name.
    """
    files = sorted(path for path in source.origin.iterdir() if path.is_file())
    return {
        "passes": [{"name": step.name, "options": _options(step)} for step in pipeline],
        "source": {path.name: _stamp(path, source.loaded) for path in files},
        **{part: _text(spec) for part, spec in texts.items()},
        **{name: getattr(value, "__qualname__", value) for name, value in options.items()},
        "versions": {name: installed_version(name) or "not installed" for name in DECIDING},
    }


def named_example(example: str | None) -> str | None:
    """Example inputs as they count for a result: those in a file by its bytes."""
    if example is None or not is_input_file(example):
        return example
    return f"{example} (sha256 {sha256(Path(example).expanduser())})"


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What differs between two identities, as the end of a sentence such as "lora.steps was 40 and is 4 now".

    Empty when the two are equal; the first three changes and a count when there are more.
    """
    found = list(_changes(before, now))
    more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return "; ".join(found[:_SHOWN]) + more


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    yield from _pass_changes(before.get("passes") or [], now["passes"])
    for name in [key for key in now if key not in ("passes", "source", "versions")]:
        flag = _FLAGS.get(name, f"--{name}")
        yield from _flag_changes(flag, before.get(name), now[name], text=name in ("calibration", "recovery"))
    yield from _file_changes(before.get("source") or {}, now["source"])
    versions = before.get("versions") or {}
    for name, value in now["versions"].items():
        if versions.get(name) != value:
            yield f"the version of {name} was {versions.get(name)} and is {value} now"


def _pass_changes(before: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    names = [step["name"] for step in now]
    if [step["name"] for step in before] != names:
        yield f"the passes were {_list(step['name'] for step in before)} and are {_list(names)} now"
        return
    for number, (old, new) in enumerate(zip(before, now, strict=True), 1):
        place = new["name"] if names.count(new["name"]) == 1 else f"pass {number}, {new['name']}"
        for option in sorted({**old["options"], **new["options"]}):
            was, value = old["options"].get(option), new["options"].get(option)
            if was == value:
                continue
            if f"{new['name']}.{option}" == _PLAN:
                yield "--plan names a file with other content now"
            else:
                yield f"{place}.{option} was {was} and is {value} now"


def _flag_changes(flag: str, before: Any, now: Any, *, text: bool) -> Iterator[str]:
    if before == now:
        return
    if before is None:
        yield f"{flag} was not given before"
    elif now is None:
        yield f"{flag} was given before and is missing now"
    elif text:
        yield f"{flag} names another text now"
    else:
        yield f"{flag} was {before} and is {now} now"


def _file_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    for name in sorted({**before, **now}):
        if before.get(name) != now.get(name):
            verb = "is new" if name not in before else "is missing" if name not in now else "has changed"
            yield f"{name} of the model {verb}"


def _options(step: Pass) -> dict[str, str]:
    return {option.name: write_value(getattr(step, option.name)) for option in options_of(type(step))}


def _list(names: Iterable[str]) -> str:
    return ",".join(names) or "none"


def _stamp(path: Path, loaded: bool) -> list[Any]:
    return [path.stat().st_size, sha256(path) if loaded else path.stat().st_mtime_ns]


def _text(spec: AsGiven) -> str | None:
    if isinstance(spec, GivenBatches):
        found = hashlib.sha256()
        for batch in spec.batches:
            found.update(json.dumps([[name, _value(value)] for name, value in sorted(batch.items())]).encode())
        return found.hexdigest()
    if isinstance(spec, str) and Path(spec).is_dir():
        files = sorted(path for path in Path(spec).rglob("*") if path.is_file())
        stamps = [[str(path.relative_to(spec)), _stamp(path, False)] for path in files]
        return hashlib.sha256(json.dumps(stamps).encode()).hexdigest()
    if isinstance(spec, GivenFiles):
        return hashlib.sha256(json.dumps([_text(path) for path in spec.paths]).encode()).hexdigest()
    if isinstance(spec, GivenRows):
        return hashlib.sha256(json.dumps(spec.rows).encode()).hexdigest()
    if spec is None or not Path(spec).is_file():
        return None if spec is None else str(spec)
    return hashlib.sha256(Path(spec).read_bytes()).hexdigest()


def _value(value: Any) -> str:
    """The value of an argument; that of an array or tensor by its bytes."""
    if not hasattr(value, "dtype"):
        return repr(value)
    array = value.detach().cpu().contiguous().view(torch.uint8).numpy() if isinstance(value, torch.Tensor) else value
    return f"{value.dtype} {tuple(value.shape)} {hashlib.sha256(array.tobytes()).hexdigest()}"
