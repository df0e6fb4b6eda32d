"""What works on every causal language model of transformers: one tiny model each, in a process of its own.

python benchmarks/coverage.py --rows rows.json --out docs/coverage.md

Rows that the JSON file holds already are not run again, but for those named with ``--again``.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import platform
import re
import sys
import tempfile
import time
from collections.abc import Iterable
from datetime import date
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

SECONDS = 120
BATCH = 24
"""Artifacts that are loaded in one process."""
KINDS = ("heads", "width", "channels", "experts")
LIMIT = 1e-10
"""Relative difference between removing and zeroing, float64."""


def kind_of(group: Any) -> str:
    """Key-value heads and query heads are heads."""
    kind: str = group.kind.value
    return "heads" if kind in ("kv_heads", "query_heads") else kind


def inspect(name: str, row: dict[str, Any]) -> None:
    """Fill a row stage by stage: build, trace, couple, then cut one group of every kind and compare with zeroing."""
    from fxprune.passes.couple import couple
    from fxprune.tests.families.causal_lm import inputs, tiny_model
    from fxprune.tracer.export import trace_causal_lm

    model = tiny_model(name)
    count = sum(p.numel() for p in model.parameters())
    row |= {"built": True, "parameters": count}
    traced = trace_causal_lm(model, **inputs(name))
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
    row["differences"] = differences(traced, coupling, model, free)


def share(groups: Iterable[Any], sizes: dict[str, int]) -> float:
    """Parameters of tensors in which a unit of some group stands, over all parameters."""
    held = {tensor for group in groups for tensor in group.tensors}
    return sum(sizes.get(tensor, 0) for tensor in held) / sum(sizes.values())


def largest_reason(groups: Iterable[Any], sizes: dict[str, int]) -> str:
    """Why the frozen groups that hold most parameters are frozen."""
    weight: dict[str, int] = {}
    for group in groups:
        weight[group.frozen] = weight.get(group.frozen, 0) + sum(sizes.get(tensor, 0) for tensor in group.tensors)
    return max(weight, key=weight.__getitem__, default="")


def differences(traced: Any, coupling: Any, model: Any, free: list[Any]) -> dict[str, float | str]:
    """Kind -> worst difference of removing random units from zeroing them, for groups that no normalisation crosses."""
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
            worst = difference(traced, coupling, model, {group.name: random_units(group, generator)})
        except Exception as error:
            found[kind] = f"{group.name}: {type(error).__name__}: {error}"[:400]
            continue
        before = found.get(kind, 0.0)
        if isinstance(before, float):
            found[kind] = max(worst, before) if math.isfinite(worst) else "not finite"
    return found


def save(name: str, row: dict[str, Any], folder: Path) -> None:
    """Prune heads, inner widths and the residual width and write the artifact, beside it what it must compute."""
    import torch

    from fxprune.api.pruning import apply
    from fxprune.backends import values
    from fxprune.backends.verify import Job
    from fxprune.tests.families.causal_lm import NOT_SAVED, SAVED_WITH, tiny_model

    if name in NOT_SAVED:
        row["saved"] = {"error": NOT_SAVED[name]}
        return
    held: list[Job] = []

    def postpone(job: Job, _source: Path | None) -> dict[str, Any]:
        held.append(job)
        return {}

    values.verify_written = postpone
    source, out = folder / name / "source", folder / name / "out"
    options = SAVED_WITH.get(name, "heads=kv,channels=true")
    try:
        tiny_model(name).save_pretrained(source)
        applied = apply(source, f"random{{{options}}}", ratio=0.5, seed=1, out=out, force=True)
    except Exception as error:
        row["saved"] = {"error": f"{type(error).__name__}: {error}".split("\n")[0][:300]}
        return
    assert applied.saved is not None
    kinds = sorted({"heads" if "heads" in change.kind else change.kind for change in applied.groups})
    row["saved"] = {"form": applied.saved.form, "options": options, "kinds": kinds, "parameters": applied.parameters}
    job = held[-1]
    assert job.reference is not None
    torch.save((dict(job.reference.inputs), job.reference.logits, job.auto_class, job.trust), folder / name / "job.pt")


def reload(names: Iterable[str], rows: dict[str, dict[str, Any]], folder: Path) -> None:
    """Load artifacts in one process in which fxprune is not importable, and compare."""
    import torch

    from fxprune.backends.verify import Job, Reference, VerificationError, verify
    from fxprune.tests.families.causal_lm import DECODES_OTHERWISE

    jobs = {}
    for name in names:
        if (folder / name / "job.pt").exists():
            inputs, logits, auto, trust = torch.load(folder / name / "job.pt")
            reference = Reference(inputs, logits)
            jobs[name] = Job(folder / name / "out", reference, auto, trust, name not in DECODES_OTHERWISE)
    try:
        found = dict(zip(jobs, verify(list(jobs.values())), strict=True))
    except VerificationError as error:
        if len(jobs) > 1:  # one of them is wrong: which?
            for name in jobs:
                reload([name], rows, folder)
        else:
            rows[next(iter(jobs))]["saved"]["error"] = error.message[:300]
        return
    for name, checks in found.items():
        rows[name]["saved"]["difference"] = checks["logits_worst_difference"]
        rows[name]["saved"]["decodes"] = checks["cached_generate_equals_uncached"]


def child(name: str, sender: Connection, folder: Path) -> None:
    """One row in a process of its own; what it found before it failed is kept."""
    import torch

    torch.set_num_threads(1)
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    row: dict[str, Any] = {}
    start = time.perf_counter()
    try:
        inspect(name, row)
        save(name, row, folder)
    except BaseException as error:
        row["error"] = f"{type(error).__name__}: {error}".split("\n")[0][:300]
    row["seconds"] = round(time.perf_counter() - start, 1)
    sender.send(row)


def run(name: str, folder: Path) -> dict[str, Any]:
    """A row, measured in a fork of this process, which has the libraries loaded."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=child, args=(name, sender, folder))
    process.start()
    sender.close()
    row: dict[str, Any] = {"error": f"more than {SECONDS} s"}
    try:
        if receiver.poll(SECONDS):
            row = receiver.recv()
    except EOFError:
        row = {"error": "the process died"}
    process.kill()
    process.join()
    return row


def is_equal(row: dict[str, Any]) -> bool:
    """Whether every cut equals zeroing."""
    return all(isinstance(found, float) and found <= LIMIT for found in row.get("differences", {}).values())


def cells(row: dict[str, Any]) -> list[str]:
    """Share by kind, or nothing; then the worst difference."""
    worst = max((f for f in row["differences"].values() if isinstance(f, float)), default=0.0)
    unknown = " ".join(f"`{op}`" for op in row["unknown"])
    shares = [f"{row['share'][kind]:.0%}" if row["share"][kind] else "" for kind in (*KINDS[:3], "any")]
    zeroing = f"{worst:.0e}" if is_equal(row) else "differs"
    return [str(row["operators"]), unknown, *shares, zeroing, *saved_cells(row.get("saved", {}))]


def saved_cells(saved: dict[str, Any]) -> list[str]:
    """Form and what was cut in the artifact, its difference after loading, and whether decoding agrees."""
    if "difference" not in saved:
        return ["", "", ""]
    kinds = ", ".join(saved["kinds"]).replace("channels", "residual")
    return [f"{saved['form']}: {kinds}", f"{saved['difference']:.0e}", "yes" if saved["decodes"] else ""]


def page(rows: dict[str, dict[str, Any]], reasons: dict[str, str]) -> str:
    """The documentation page."""
    traced = {name: row for name, row in rows.items() if "share" in row}
    having = {kind: sum(bool(row["share"][kind]) for row in traced.values()) for kind in KINDS}
    both = sum(bool(row["share"]["heads"] and row["share"]["width"] and is_equal(row)) for row in traced.values())
    saved = [row["saved"] for row in traced.values() if "difference" in row.get("saved", {})]
    whole = sum({"heads", "width"} <= set(found["kinds"]) for found in saved)
    residual = sum("channels" in found["kinds"] for found in saved)
    lines = [
        "# Coverage", "",
        "Generated by `python benchmarks/coverage.py --rows rows.json --out docs/coverage.md`"
        f" ({platform.machine()}, Python {platform.python_version()}, {date.today()}).", "",
        f"Of {len(rows)} model types that transformers maps to a causal language model, {len(traced)} are built small"
        f" and traced. Attention heads are prunable in {having['heads']}, an inner width (feed-forward, expert, mixer)"
        f" in {having['width']}, the residual width in {having['channels']}; heads and an inner width, and every cut"
        f" equal to zeroing, in {both}. The columns give the share of parameters in tensors that such a cut makes"
        " smaller; *any* is that of all of them, head channels left out. *Difference*: the worst one between removing"
        " and zeroing random units of two groups of every kind that no normalisation crosses, relative, float64.",
        "",
        f"{len(saved)} were written as artifacts with half of their units removed at random, {whole} of them without"
        f" half of their heads and inner widths, {residual} without half of the residual width; each was loaded by"
        " transformers alone in a process in which fxprune cannot be imported. *Saved*: the form, and what was cut;"
        " *reloaded*: the worst difference of its logits from those of the rewritten graph, relative to their scale,"
        " float32 (1e-5 is allowed); *decodes*: greedy tokens with the cache equal those without.",
        "",
        "| model type | operators | without a rule | heads | width | residual | any | difference | saved | reloaded"
        " | decodes |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    lines += ["| " + " | ".join([name, *cells(row)]) + " |" for name, row in traced.items()]
    lines += ["", "## Why a cell is empty", "", "| model type | what | why |", "|---|---|---|"]
    for name, row in traced.items():
        for kind, reason in row["frozen"].items():
            if kind != "experts":
                lines.append(f"| {name} | {kind.replace('channels', 'residual')} | {reason or 'it has none'} |")
        why = row.get("saved", {}).get("error")
        if why:
            lines.append(f"| {name} | saved | {why} |")
    lines += ["", "## Not traced", "", "| model type | why |", "|---|---|"]
    lines += [f"| {n} | {reasons.get(n) or row.get('error')} |" for n, row in rows.items() if n not in traced]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=Path, help="JSON file that keeps the rows")
    parser.add_argument("--out", type=Path, help="Markdown page")
    parser.add_argument("--again", nargs="*", default=[], help="model types to run although the JSON file has them")
    options = parser.parse_args()
    from fxprune.tests.families.causal_lm import NOT_TRACED, names

    rows: dict[str, dict[str, Any]] = {}
    if options.rows and options.rows.exists():
        rows = json.loads(options.rows.read_text(encoding="utf-8"))
    todo = [name for name in names() if name not in rows or name in options.again]
    for batch in range(0, len(todo), BATCH):
        with tempfile.TemporaryDirectory(prefix="fxprune-coverage-") as folder:
            for name in todo[batch : batch + BATCH]:
                rows[name] = {"error": NOT_TRACED[name]} if name in NOT_TRACED else run(name, Path(folder))
                print(name, json.dumps(rows[name]), file=sys.stderr, flush=True)
            reload(todo[batch : batch + BATCH], rows, Path(folder))
        if options.rows:
            options.rows.write_text(json.dumps(rows, indent=1, sort_keys=True), encoding="utf-8")
    text = page({name: rows[name] for name in names()}, NOT_TRACED)
    options.out.write_text(text, encoding="utf-8") if options.out else print(text)


if __name__ == "__main__":
    main()
