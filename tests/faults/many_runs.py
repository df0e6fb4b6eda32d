"""Runs that collide, are killed, or fill the disk, many times: OUT is whole, nothing is lost, nothing is left over.

    python -m fxprune.tests.faults.many_runs --concurrent 200 --kills 200 --full 50 --out faults.json

Imports and traces once, and forks a process for every run of a tiny model. Every fiftieth round is checked in a
fresh process, as all runs of users are; the others leave that out, since its imports take seconds. What must hold:

- Two runs begin together into one OUT. One result is at OUT, the other beside it where its error says so, both whole.
- A run is killed with SIGKILL, after a random time or at a random access to a file beside OUT, over an old OUT or none.
  OUT is the old one or the new one, whole. Every tenth time the next run is left alive, and nothing else remains.
- The disk fills at some access to a file, up to the last byte. OUT is as it was, and nothing else is there.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import hashlib
import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fxprune import api
from fxprune.backends.huggingface import save, weight_source
from fxprune.backends.onnx import decoder
from fxprune.ir.errors import FxpruneError
from fxprune.runtime.consent import Consent
from fxprune.tests.checkpoints import write_checkpoint
from fxprune.tests.corpora import word_tokenizer
from fxprune.tests.traces import shared_traces

WORDS = [f"w{number}" for number in range(26)]
TEXT = [" ".join(WORDS[(start + step) % 26] for step in range(16)) for start in range(8)]
LORA = "random{ratio=0.5},lora{steps=2,batch=2,micro_batch=2,length=16,lr=0.001}"
IMPORTED = ("accelerate", "onnxruntime", "onnxscript", "peft", "torch.onnx", "transformers.trainer")
MEGABYTE = 1 << 20
CHECKED = 50

Contents = dict[str, str] | None


@dataclass(frozen=True)
class Kind:
    """What runs.

    Attributes:
        name: of it.
        run: a run with a seed, from a source to a place.
    """

    name: str
    run: Callable[[Path, Path, int, bool], object]


def lora(source: Path, out: Path, seed: int, force: bool) -> object:
    """Two passes; every other run saves what it has after each."""
    return api.apply(source, LORA, data=TEXT, seed=seed, out=out, force=force, resume=seed % 2 == 0)


def plain(source: Path, out: Path, seed: int, force: bool) -> object:
    """Weights from files to files."""
    return api.apply(source, "random", ratio=0.5, seed=seed, out=out, force=force)


def export(source: Path, out: Path, seed: int, force: bool) -> object:
    """To ONNX; the seed is that of the weights."""
    return api.export(source.with_name(f"{source.name}{seed}"), out, force=force, optimize="none")


KINDS = {kind.__name__: Kind(kind.__name__, kind) for kind in (plain, lora, export)}


def contents(folder: Path) -> Contents:
    """Path -> sha256 of all files in a directory; None if there is none. How long a check took is left out."""
    if not folder.is_dir():
        return None
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


class Place:
    """A directory with OUT, and one for temporary files."""

    def __init__(self, folder: Path, source: Path) -> None:
        self.folder, self.temporary, self.source = folder / "place", folder / "temporary", source
        self.out = self.folder / "out"
        for path in (self.folder, self.temporary):
            path.mkdir(parents=True, exist_ok=True)

    def entries(self) -> list[str]:
        return sorted(path.name for path in (*self.folder.iterdir(), *self.temporary.iterdir()))

    def clear(self) -> None:
        for path in (*self.folder.iterdir(), *self.temporary.iterdir()):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def start(
        self,
        kind: Kind,
        seed: int,
        *,
        force: bool = True,
        check: bool = False,
        at: int = 0,
        act: Callable[[], None] | None = None,
    ) -> Started:
        """Fork a run; ``act`` happens in it at its ``at``-th access to a file beside OUT."""
        reader, writer = os.pipe()
        child = os.fork()
        if child:
            os.close(writer)
            return Started(child, reader)
        os.close(reader)
        code = 1
        try:
            # torch renews its threads when it first uses them after a fork, which two threads must not do at once.
            torch.set_num_threads(1)
            tempfile.tempdir = str(self.temporary)
            os.environ["TMPDIR"] = str(self.temporary)
            if not check:
                save.FreshProcess = contextlib.nullcontext  # type: ignore[misc, assignment]
            weight_source.verify_written = _verify(weight_source.verify_written if check else None)
            count = self._watch(at, act)
            told: dict[str, Any] = {"hint": "", "message": ""}
            try:
                with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stderr(nowhere):
                    kind.run(self.source, self.out, seed, force)
            except FxpruneError as error:
                told = {"hint": error.hint, "message": error.message}
            os.write(writer, json.dumps({**told, "events": count[0]}).encode())
            code = 0
        except BaseException as error:
            os.write(writer, json.dumps({"hint": "", "message": repr(error), "events": 0, "raw": True}).encode())
        finally:
            os._exit(code)

    def _watch(self, at: int, act: Callable[[], None] | None) -> list[int]:
        count, inside = [0], [False]
        places = (str(self.folder), str(self.temporary))

        def watch(event: str, arguments: tuple[Any, ...]) -> None:
            if inside[0] or not event.startswith(("open", "os.", "shutil.")):
                return
            if any(str(argument).startswith(places) for argument in arguments):
                count[0] += 1
                if count[0] == at and act is not None:
                    inside[0] = True
                    act()
                    inside[0] = False

        sys.addaudithook(watch)
        return count


@dataclass
class Started:
    """A run in a process of its own."""

    child: int
    reader: int

    def end(self, after: float | None = None) -> dict[str, Any]:
        """Wait for its end, or kill it after some seconds; what it said."""
        if after is not None:
            time.sleep(after)
            os.kill(self.child, signal.SIGKILL)
        with os.fdopen(self.reader) as file:
            said = file.read()
        _, status = os.waitpid(self.child, 0)
        killed = os.WIFSIGNALED(status)
        return {"killed": killed, **(json.loads(said) if said else {"message": "", "hint": "", "events": 0})}


def _verify(check: Callable[..., Any] | None) -> Callable[..., dict[str, str]]:
    def verify(*arguments: Any) -> dict[str, str]:
        if check is not None:
            check(*arguments)
        return {"the same": "in every record"}

    return verify


@dataclass
class Usual:
    """A run that nobody disturbs: its seconds, and by seed how often it accesses files beside OUT."""

    seconds: float
    events: dict[int, int]


def whole(place: Place, kind: Kind) -> tuple[dict[int, Contents], Usual]:
    """What a run writes that nobody disturbs, for two seeds, and how it runs; each is run twice."""
    found: dict[int, Contents] = {}
    events: dict[int, int] = {}
    for seed in (1, 2, 1, 2):
        place.clear()
        begun = time.monotonic()
        said = place.start(kind, seed).end()
        assert not said["message"], said
        assert place.entries() == ["out"], place.entries()
        now = contents(place.out)
        assert found.setdefault(seed, now) == now, "the same run gives the same bytes"
        events[seed] = int(said["events"])
    return found, Usual(time.monotonic() - begun, events)


def concurrent(place: Place, rounds: int) -> dict[str, int]:
    """Two runs into one OUT; by turns without an OUT before and ``--force``, with force, and with both."""
    kind = KINDS["plain"]
    expected, _ = whole(place, kind)
    seen: Counter[str] = Counter()
    for number in range(rounds):
        place.clear()
        force = number % 3 > 0
        if number % 3 == 2:
            place.start(kind, 1).end()
        runs = [place.start(kind, seed, force=force, check=number % CHECKED == CHECKED - 1) for seed in (1, 2)]
        said = [run.end() for run in runs]
        losers = [index for index, one in enumerate(said) if one["message"]]
        seen[f"{len(losers)} of two runs said that OUT has changed"] += 1
        assert not any(one.get("raw") for one in said), said
        assert len(losers) <= 1, said
        # Without a loser one was done before the other began to look.
        assert contents(place.out) in ([expected[2 - losers[0]]] if losers else list(expected.values()))
        if losers and "already exists" in said[losers[0]]["message"]:
            assert place.entries() == ["out"]  # refused before any work
            seen["of them refused before any work"] += 1
        elif losers:
            beside = Path(said[losers[0]]["hint"].rpartition(" ")[2])
            assert contents(beside) == expected[1 + losers[0]]
            assert place.entries() == ["out", beside.name], place.entries()
        else:
            assert place.entries() == ["out"], place.entries()
    return {"rounds": rounds, **seen}


def kills(place: Place, kind: Kind, count: int, dice: random.Random) -> dict[str, Any]:
    """Runs that are killed; by turns over an old OUT twice, and over none."""
    expected, usual = whole(place, kind)
    seen: Counter[str] = Counter()
    for number in range(count):
        if number % 3 == 2:
            shutil.rmtree(place.out)
        before = contents(place.out)
        seed = 2 if before == expected[1] else 1
        if number % 2:
            at = dice.randint(1, usual.events[seed])
            said = place.start(kind, seed, check=number % CHECKED == CHECKED - 1, at=at, act=_kill).end()
        else:
            said = place.start(kind, seed).end(dice.uniform(0, 1.05 * usual.seconds))
        after = contents(place.out)
        assert not said["message"], said
        assert after in (before, expected[seed]), (number, after)
        assert said["killed"] or after == expected[seed]
        seen["killed" if said["killed"] else "done before they were killed"] += 1
        seen["with leftovers"] += place.entries() not in ([], ["out"])
        if number % 10 == 9 or not place.out.exists():
            said = place.start(kind, 3 - seed).end()
            assert not said["message"], said
            assert contents(place.out) == expected[3 - seed]
            assert place.entries() == ["out"], place.entries()
            seen["times that the next run left nothing but OUT"] += 1
    return {"runs": count, **seen, "accesses": sorted(usual.events.values())}


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A file system of its own, in memory."""
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def full(folder: Path, source: Path, kind: Kind, count: int) -> dict[str, Any]:
    """The disk fills in the middle of a run over an old OUT."""
    seen: Counter[str] = Counter()
    with small_disk(folder):
        place = Place(folder, source)
        expected, usual = whole(place, kind)
        ballast = folder / "ballast"

        def fill() -> None:
            with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
                for size in (MEGABYTE, 4096):
                    with contextlib.suppress(OSError):
                        while True:
                            file.write(b"x" * size)

        for number in range(count):
            before = contents(place.out)
            seed = 2 if before == expected[1] else 1
            at = 1 + number * usual.events[seed] // count
            said = place.start(kind, seed, at=at, act=fill).end()
            assert ballast.exists(), "the disk was never full"
            ballast.unlink()
            after = contents(place.out)
            assert not said["killed"], said
            assert after == (before if said["message"] else expected[seed]), said
            # What --resume goes on from stays by intent, until a run is done.
            assert set(place.entries()) <= {"out", ".out.stages"} - ({".out.stages"} if not said["message"] else set())
            shutil.rmtree(place.folder / ".out.stages", ignore_errors=True)
            seen[_sorted_out(said, seen)] += 1
        place.start(kind, seed).end()
        assert place.entries() == ["out"], place.entries()
    return {"places": count, **seen}


def _sorted_out(said: dict[str, Any], seen: Counter[str]) -> str:
    if not said["message"]:
        return "enough room by then"
    if "the disk is full" in said["message"]:
        return "said that the disk is full"
    if "GB are needed" in said["message"]:
        return "refused for want of room, before writing"
    seen[f"said: {said['message'][:120]}"] += 1
    return "said something else"


def warm(folder: Path, source: Path, kinds: set[str]) -> None:
    """Import and trace here what every run would import and trace."""
    for module in IMPORTED:
        importlib.import_module(module)
    usual = save.FreshProcess, weight_source.verify_written
    save.FreshProcess = contextlib.nullcontext  # type: ignore[misc, assignment]
    weight_source.verify_written = _verify(None)
    for name in sorted(kinds - {"export"}):
        KINDS[name].run(source, folder / f"warm-{name}", 1, False)
    save.FreshProcess, weight_source.verify_written = usual  # type: ignore[misc]
    if "export" in kinds:
        sources = [source.with_name(f"{source.name}{seed}") for seed in (1, 2)]
        loaded = {path: decoder.load_causal_lm(Consent.nothing(path)) for path in sources}
        programs = {id(model): decoder.trace_onnx(model, optimize="none", opset=None) for model, _ in loaded.values()}
        decoder.load_causal_lm = lambda consent: loaded[consent.directory]  # type: ignore[assignment]
        decoder.trace_onnx = lambda model, **_: programs[id(model)]  # type: ignore[assignment]
    gc.collect()
    gc.freeze()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--concurrent", type=int, default=0, help="rounds of two runs into one OUT")
    parser.add_argument("--kills", type=int, default=0, help="kill points, for each of --kinds")
    parser.add_argument("--full", type=int, default=0, help="places at which the disk fills, for each of --kinds")
    parser.add_argument("--kinds", nargs="+", default=["lora", "export"], choices=KINDS)
    parser.add_argument("--out", type=Path, help="a file for the numbers")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch, shared_traces():
        folder = Path(scratch)
        for name, seed in (("source", 0), ("source1", 1), ("source2", 2)):
            write_checkpoint(folder / name, seed=seed)
            word_tokenizer(WORDS).save_pretrained(folder / name)
        source = folder / "source"
        warm(folder, source, {"plain", *options.kinds})

        def note(name: str, result: Callable[[], dict[str, Any]]) -> None:
            begun = time.monotonic()
            found[name] = {**result(), "took_seconds": round(time.monotonic() - begun, 1)}
            print(json.dumps({name: found[name]}), flush=True)
            if options.out:
                options.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")

        if options.concurrent:
            note("concurrent", lambda: concurrent(Place(folder / "concurrent", source), options.concurrent))
        for kind in map(KINDS.__getitem__, options.kinds):
            place = Place(folder / kind.name, source)
            if options.kills:
                note(f"kills, {kind.name}", lambda k=kind, p=place: kills(p, k, options.kills, random.Random(0)))
            if options.full:
                note(f"full, {kind.name}", lambda k=kind: full(folder / f"full-{k.name}", source, k, options.full))


if __name__ == "__main__":
    main()
