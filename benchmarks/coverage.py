"""What works for every causal language model of transformers and for other architectures: one tiny model for each, in a
process of its own.

python benchmarks/coverage.py --rows rows.json --other other.json --out docs/coverage.md

Rows that are in a JSON file already are not run again, except those given with ``--again``. ``--onnx N`` exports the
artifacts of the next N rows that have not been exported yet; ``--only`` gives the table.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterable
from contextlib import nullcontext
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

SECONDS = 180
ONNX_SECONDS = 400
BATCH = 6
"""Number of artifacts that are loaded in one process."""
KINDS = ("heads", "width", "channels", "experts")


def kind_of(group: Any) -> str:
    """The kind in the table: kv heads and query heads count as heads."""
    kind: str = group.kind.value
    return "heads" if kind in ("kv_heads", "query_heads") else kind


class CausalLanguageModels:
    """Every model type that transformers maps to a causal language model."""

    title = "Causal language models"
    what = "model types that transformers maps to a causal language model"
    how_much = "Half of every group was removed, since a quarter of two key-value heads is not a whole head."
    cached = True

    def __init__(self) -> None:
        from fxprune.tests.families import causal_lm as table

        self.table, self.names, self.not_traced = table, table.names(), table.NOT_TRACED
        self.ratio = dict.fromkeys(self.names, 0.5)
        self.example: dict[str, str] = {}
        self.decodes = set(self.names) - table.DECODES_OTHERWISE

    def options(self, name: str) -> str:
        return self.table.SAVED_WITH.get(name, "heads=kv,channels=true")

    def trace(self, name: str, model: Any) -> Any:
        from fxprune.tracer.export import trace_causal_lm

        return trace_causal_lm(model, **self.table.inputs(name))


class OtherModels:
    """Encoders, encoder-decoders, vision, two towers, audio: the rows of the tests' table."""

    title = "Encoders, encoder-decoders, vision, two towers, audio, time series"
    what = "model types"
    how_much = "A quarter of every group was removed, or half if a quarter of its heads is not a whole head."
    cached = False

    def __init__(self) -> None:
        from fxprune.tests.families import other as table

        self.table, self.names, self.not_traced = table, list(table.ROWS), table.NOT_TRACED
        self.ratio = {name: 0.5 if name in table.HALF else 0.25 for name in self.names}
        self.example = {name: row.inputs for name, row in table.ROWS.items()}
        self.decodes = set(self.names)

    def options(self, name: str) -> str:
        return self.table.SAVED_WITH.get(name, "channels=true")

    def trace(self, name: str, model: Any) -> Any:
        from fxprune.tracer.export import trace_model

        given = self.table.inputs(name)
        return trace_model(model, given, output=self.table.ROWS[name].output, values=given)


class ImageTextModels:
    """Every model type that transformers maps to a model that makes text from images and text, called with images."""

    title = "Images and text"
    what = "model types that transformers maps to a model that makes text from images and text"
    how_much = "Half of every group was removed, in both towers and what joins them."
    cached = False

    def __init__(self) -> None:
        from fxprune.tests.families import image_text as table

        self.table, self.names, self.not_traced = table, table.names(), table.NOT_TRACED
        self.ratio = dict.fromkeys(self.names, 0.5)
        self.example: dict[str, str] = {}
        self.decodes = set(self.names)

    def options(self, name: str) -> str:
        return self.table.SAVED_WITH.get(name, "heads=kv,channels=true")

    def trace(self, _: str, model: Any) -> Any:
        from fxprune.tracer.example import example_inputs, trace_call

        return trace_call(model, example_inputs(model))

    def given(self, model: Any) -> Any:
        """The example inputs: random numbers are no images where positions stand among them."""
        from fxprune.tracer.example import example_inputs

        return example_inputs(model)

    def prepare(self, name: str, folder: Path) -> None:
        """Write the example inputs: a class that also makes text alone is called with images only if they are given."""
        from safetensors.torch import save_file

        from fxprune.tracer.example import example_inputs

        self.example[name] = str(folder / f"{name}.safetensors")
        save_file(example_inputs(self.table.tiny_model(name)), self.example[name])


def inspect(name: str, row: dict[str, Any], models: Any) -> None:
    """Fill a row stage by stage: build, trace, couple, then cut one group of every kind and compare with zeroing."""
    from fxprune.passes.couple.coupling import couple

    model = models.table.tiny_model(name)
    count = sum(p.numel() for p in model.parameters())
    row |= {"built": True, "parameters": count}
    traced = models.trace(name, model)
    row |= {"traced": True, "operators": len({op.packet for op in traced.graph.ops})}
    coupling = couple(traced.graph)
    row["unknown"] = sorted({op.packet for op in coupling.unknown})
    sizes = {key: p.numel() for key, p in model.named_parameters()}
    free = [group for group in coupling.prunable if group.size > 1]
    row["share"] = {kind: share([g for g in free if kind_of(g) == kind], sizes) for kind in KINDS}
    row["share"]["any"] = share([g for g in free if kind_of(g) != "head_dim"], sizes)
    row["frozen"] = {
        kind: largest_reason([g for g in coupling.groups.values() if kind_of(g) == kind and g.frozen], sizes)
        for kind in KINDS
        if not row["share"][kind]
    }
    inner = {tensor for g in free if kind_of(g) in ("heads", "width") for tensor in g.tensors}
    row["whole"] = sorted(
        {re.sub(r"\b\d+\b", "*", key) for key, p in model.named_parameters() if p.dim() > 1 and key not in inner}
    )
    given = models.given(model) if hasattr(models, "given") else None
    row["differences"] = differences(traced, coupling, model, free, given)


def share(groups: Iterable[Any], sizes: dict[str, int]) -> float:
    """Share of the parameters that are in a tensor of one of these groups."""
    held = {tensor for group in groups for tensor in group.tensors}
    return sum(sizes.get(tensor, 0) for tensor in held) / sum(sizes.values())


def largest_reason(groups: Iterable[Any], sizes: dict[str, int]) -> str:
    """The reason why most of the frozen parameters are frozen."""
    weight: dict[str, int] = {}
    for group in groups:
        weight[group.frozen] = weight.get(group.frozen, 0) + sum(sizes.get(tensor, 0) for tensor in group.tensors)
    return max(weight, key=weight.__getitem__, default="")


def differences(traced: Any, coupling: Any, model: Any, free: list[Any], given: Any) -> dict[str, float | str]:
    """Kind -> largest difference between removing and zeroing random units, if no normalisation crosses the group."""
    import numpy as np

    from fxprune.tests.equivalence import difference, random_units

    found: dict[str, float | str] = {}
    tried: dict[str, int] = {}
    generator = np.random.default_rng(0)
    for group in free:
        kind = group.kind.value
        if group.normalised or tried.get(kind, 0) == 2:
            continue
        tried[kind] = tried.get(kind, 0) + 1
        try:
            worst = difference(traced, coupling, model, {group.name: random_units(group, generator)}, given=given)
        except Exception as error:
            found[kind] = f"{group.name}: {type(error).__name__}: {error}"[:400]
            continue
        before = found.get(kind, 0.0)
        if isinstance(before, float):
            found[kind] = max(worst, before) if math.isfinite(worst) else "not finite"
    return found


def save(name: str, row: dict[str, Any], folder: Path, models: Any) -> None:
    """Prune heads, inner widths and the residual width, and write the artifact and its expected outputs."""
    import torch

    from fxprune.api.pruning.request import apply
    from fxprune.backends.huggingface import save, weight_source
    from fxprune.backends.verify import Job

    if name in models.table.NOT_SAVED:
        row["saved"] = {"error": models.table.NOT_SAVED[name]}
        return
    held: list[Job] = []

    def postpone(job: Job, *_: object) -> dict[str, Any]:
        held.append(job)
        return {}

    weight_source.verify_written = postpone
    save.FreshProcess = nullcontext  # type: ignore[assignment,misc]
    source, out = folder / name / "source", folder / name / "out"
    options, ratio = models.options(name), models.ratio[name]
    try:
        if hasattr(models, "prepare"):
            models.prepare(name, folder)
        models.table.tiny_model(name).save_pretrained(source)
        example = models.example.get(name)
        applied = apply(source, f"random{{{options}}}", ratio=ratio, seed=1, out=out, force=True, example=example)
    except Exception as error:
        row["saved"] = {"error": f"{type(error).__name__}: {error}".split("\n")[0][:300]}
        return
    assert applied.saved is not None
    kinds = sorted({"heads" if "heads" in change.kind else change.kind for change in applied.groups})
    row["saved"] = {"form": applied.saved.form, "options": options, "kinds": kinds, "parameters": applied.parameters}
    row["saved"]["ratio"] = ratio
    job = held[-1]
    assert job.reference is not None
    torch.save((vars(job.reference), job.auto_class, job.consent.to_json()), folder / name / "job.pt")


def reload(names: Iterable[str], rows: dict[str, dict[str, Any]], folder: Path, models: Any) -> None:
    """Load artifacts in one process in which fxprune cannot be imported, and compare their outputs."""
    import torch

    from fxprune.backends.verify import Job, Reference, VerificationError, verify, verify_written
    from fxprune.runtime.consent import Consent

    jobs = {}
    for name in names:
        if (folder / name / "job.pt").exists():
            reference, auto, consent = torch.load(folder / name / "job.pt")
            # The directory was written beside its place, and moved there after the job had been made.
            held = Consent.from_json(consent).moved(folder / name / "out")
            jobs[name] = Job(held, Reference(**reference), auto, name in models.decodes)
    try:
        found = dict(zip(jobs, verify(list(jobs.values())), strict=True))
    except VerificationError as error:
        if len(jobs) > 1:  # one of them is wrong: which?
            for name in jobs:
                reload([name], rows, folder, models)
            return
        ((name, job),) = jobs.items()
        try:  # a check that the source does not pass either is not asked of the artifact
            found = {name: verify_written(job, Consent.nothing(folder / name / "source"))}
        except VerificationError:
            rows[name]["saved"]["error"] = error.message[:300]
            return
    for name, checks in found.items():
        rows[name]["saved"]["difference"] = checks["logits_worst_difference"]
        rows[name]["saved"]["decodes"] = checks["cached_generate_equals_uncached"]
        if refused := checks.get("runs_without_cache_only"):
            rows[name]["saved"]["without_cache"] = refused


def export(name: str, row: dict[str, Any], folder: Path, models: Any) -> None:
    """Export the artifact to ONNX, which compares it with torch."""
    from fxprune.api import apply
    from fxprune.api import export as to_onnx

    source, out = folder / name / "source", folder / name / "out"
    models.table.tiny_model(name).save_pretrained(source)
    example = models.example.get(name)
    apply(
        source, f"random{{{models.options(name)}}}", ratio=models.ratio[name], seed=1, out=out, force=True,
        example=example,
    )  # fmt: skip
    start = time.perf_counter()
    for cache in (True, False) if models.cached else (True,):
        try:
            made = to_onnx(out, folder / name / "onnx", example=example, cache=cache, trust_remote_code=True)
            # Where nothing but the graph without a cache could be made, why that is stays in the row.
            row["onnx"] = {**row.get("onnx", {}), "difference": max(made.differences.values()), "open": made.open}
            break
        except Exception as error:
            row.setdefault("onnx", {"error": f"{type(error).__name__}: {error}".split("\n")[0][:300]})
    row["onnx"]["seconds"] = round(time.perf_counter() - start, 1)


def child(name: str, sender: Connection, folder: Path, models: Any, what: str) -> None:
    """Measure one row in a process of its own; if it fails, the results until then are kept."""
    import torch

    torch.set_num_threads(1)
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    row: dict[str, Any] = {}
    start = time.perf_counter()
    try:
        if what == "onnx":
            export(name, row, folder, models)
        else:
            inspect(name, row, models)
            if what == "all":
                save(name, row, folder, models)
    except BaseException as error:
        row["error"] = f"{type(error).__name__}: {error}".split("\n")[0][:300]
    row["seconds"] = round(time.perf_counter() - start, 1)
    sender.send(row)


def run(name: str, folder: Path, models: Any, what: str) -> dict[str, Any]:
    """Measure a row in a fork of this process, which has imported the libraries."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=child, args=(name, sender, folder, models, what))
    process.start()
    sender.close()
    seconds = ONNX_SECONDS if what == "onnx" else SECONDS
    row: dict[str, Any] = {"error": f"more than {seconds} s"}
    try:
        if receiver.poll(seconds):
            row = receiver.recv()
    except EOFError:
        row = {"error": "the process died"}
    process.kill()
    process.join()
    return row


def measured(
    models: Any, file: Path | None, again: Iterable[str], only: Iterable[str] = (), what: str = "all"
) -> dict[str, dict[str, Any]]:
    """The rows of a table; those that are not in the file are measured now."""
    rows: dict[str, dict[str, Any]] = {}
    if file and file.exists():
        rows = json.loads(file.read_text(encoding="utf-8"))
    todo = [name for name in models.names if name not in rows or name in again]
    todo = [name for name in only or todo if name in todo]
    for batch in range(0, len(todo), BATCH):
        with tempfile.TemporaryDirectory(prefix="fxprune-coverage-") as folder:
            for name in todo[batch : batch + BATCH]:
                known = models.not_traced.get(name)
                rows[name] = {"error": known} if known else run(name, Path(folder), models, what)
                print(name, json.dumps(rows[name]), file=sys.stderr, flush=True)
            reload(todo[batch : batch + BATCH], rows, Path(folder), models)
        keep(rows, file)
    return rows


def exported(models: Any, rows: dict[str, dict[str, Any]], file: Path | None, count: int) -> None:
    """Export artifacts that have not been exported yet."""
    todo = [name for name in models.names if "difference" in rows.get(name, {}).get("saved", {})]
    todo = [name for name in todo if "onnx" not in rows[name]]
    for name in todo[:count]:
        with tempfile.TemporaryDirectory(prefix="fxprune-coverage-") as folder:
            found = run(name, Path(folder), models, "onnx")
        rows[name]["onnx"] = found.get("onnx", {"error": found.get("error", "")})
        print(name, json.dumps(rows[name]["onnx"]), file=sys.stderr, flush=True)
        keep(rows, file)


def keep(rows: dict[str, dict[str, Any]], file: Path | None) -> None:
    if file:
        file.write_text(json.dumps(rows, indent=1, sort_keys=True), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=Path, help="JSON file for the rows of causal language models")
    parser.add_argument("--other", type=Path, help="JSON file for the rows of other models")
    parser.add_argument("--images", type=Path, help="JSON file for the rows of models of images and text")
    parser.add_argument("--out", type=Path, help="the page to write, in Markdown")
    parser.add_argument("--again", nargs="*", default=[], help="model types to measure again")
    parser.add_argument("--names", nargs="*", default=[], help="measure only these model types")
    parser.add_argument("--what", choices=("all", "graphs"), default="all", help="graphs: write no artifacts")
    parser.add_argument("--onnx", type=int, default=0, metavar="N", help="export the artifacts of N more rows")
    parser.add_argument("--only", choices=("rows", "other", "images"), help="work on one table only, and write no page")
    options = parser.parse_args()
    from fxprune.benchmarks.coverage_page import WAITING, head, page

    tables = {"rows": CausalLanguageModels(), "other": OtherModels(), "images": ImageTextModels()}
    found = {}
    for key, models in tables.items():
        if options.only in (None, key):
            found[key] = measured(models, getattr(options, key), options.again, options.names, options.what)
            exported(models, found[key], getattr(options, key), options.onnx)
    if options.only is None:
        missing = {"error": WAITING}
        pages = [page({n: found[key].get(n, missing) for n in models.names}, models) for key, models in tables.items()]
        text = head() + "\n" + "\n".join(pages)
        options.out.write_text(text, encoding="utf-8") if options.out else print(text)


if __name__ == "__main__":
    main()
