"""The runs of benchmarks/quality.py: pipelines, budgets, models and draws."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from fxprune.benchmarks.llm_pruner import CRITERIA

Row = dict[str, Any]

PARTS = ("scores", "paper", "halves", "criteria", "search", "recovery", "rate")
TEXTS = ("tinystories", "wikitext2", "bookcorpus")
PAPER_RATIOS = {0.839: 0.25, 0.634: 0.6}
"""Share of kept parameters -> the ratio with which LLM-Pruner keeps this share."""

PAPER_MODEL = "llama-7m"
PAPER_WINDOWS = 200
PAPER_CALIBRATION = "bookcorpus"
PAPER_FIRST = 10
"""Number of calibration windows in the comparison with LLM-Pruner."""
OBS_OF_TEN = "obs{target=params:TARGET,by=global,samples=10},compensate{samples=10,damping=0.3}"
DRAWS = ("", *(f",seed={seed}" for seed in range(1, 6)))
OBS_OF_WRITTEN = tuple(
    f"generate{{windows=128{draw}}},obs{{target=params:TARGET,by=global,samples=138}},compensate{{samples=138}}"
    for draw in DRAWS[:3]
)
OBS_OF_MORE = tuple(
    f"generate{{windows=384{draw}}},obs{{target=params:TARGET,by=global,samples=266}},compensate{{samples=394}}"
    for draw in DRAWS
)
PAPER_PIPELINES = (
    "taylor{target=params:TARGET}",
    "fisher{target=params:TARGET,by=global,samples=10}",
    "fisher{target=params:TARGET,by=search,samples=10},compensate{samples=10,damping=0.3}",
    OBS_OF_TEN,
    "generate{windows=128},fisher{target=params:TARGET,by=global,samples=138},compensate{samples=138}",
    *OBS_OF_WRITTEN,
    *OBS_OF_MORE,
    "generate{windows=384},fisher{target=params:TARGET,by=global,samples=266},compensate{samples=394}",
    "generate{windows=128},fisher{target=params:HALFWAY,by=global,samples=138},compensate{samples=138},"
    "fisher{target=params:TARGET,by=global,samples=138},compensate{samples=138}",
)

PAPER_MORE = (
    "fisher{target=params:TARGET,by=global,samples=128,seed=0},compensate{samples=384,seed=0}",
    "obs{target=params:TARGET,by=global,samples=128,seed=0},compensate{samples=384,seed=0}",
)
MIXED = "+".join(TEXTS)
"""The same number of characters of the calibration part of each text, one after the other."""

NO_REFIT = ""
REFITS = {
    NO_REFIT: "",
    PAPER_CALIBRATION: ",compensate{samples=10,damping=0.3}",
    MIXED: ",compensate{samples=384,seed=0}",
}
"""Text -> the refit on it, for the ten windows and for three texts."""
CHOICES = {PAPER_CALIBRATION: "samples=10", MIXED: "samples=128,seed=0"}
"""Text -> number of its windows that a score reads."""

SAME_WINDOWS = {
    "the paper's ten": (0, None, OBS_OF_TEN),
    "and 128 that the model writes": (128, 0, OBS_OF_WRITTEN[0]),
    "another draw of the 128": (128, 1, OBS_OF_WRITTEN[1]),
    "a third of the 128": (128, 2, OBS_OF_WRITTEN[2]),
    "and 384": (384, 0, OBS_OF_MORE[0]),
    "another draw of the 384": (384, 1, OBS_OF_MORE[1]),
    "a third of the 384": (384, 2, OBS_OF_MORE[2]),
}
"""Name of windows -> number that the dense model writes beside the first ten, the seed, and obs on all of them."""
PAPER_OWN = "the paper's ten"

SCORES_MODELS = ("stories260k", "tinystories-656k", "babyllama-1m", "llama-7m")
SCORES_TARGETS = (0.9, 0.8, 0.7, 0.5)
SEARCH_TARGETS = (0.8, 0.6)
BUDGET = "target=params:TARGET,samples=32,seed=SEED"
REFIT = ",compensate{samples=32,seed=SEED}"
PAPER_COLUMN = "taylor uniform, not refitted"
SCORES = {
    PAPER_COLUMN: f"taylor{{{BUDGET}}}",
    **{
        f"{score} {way}": f"{score}{{{BUDGET},by={way}}}{REFIT}"
        for score in ("wanda", "flap", "fisher", "obs")
        for way in ("uniform", "global")
    },
    "obs global, values": f"turn{{samples=32,seed=SEED}},obs{{{BUDGET},by=global,values=true}}{REFIT}",
}
PEERS = ("wanda", "flap")
RECOVERED = {"uniform": "obs uniform", "free": "obs global"}
"""Form -> the column of SCORES before recovery; the forms differ only in the distribution of the budget."""

RECOVER = ",distill{steps=50,batch=16,micro_batch=16,length=128,lr=LR,seed=SEED}"
RATES = ("0.00003", "0.0001", "0.0003", "0.001", "0.003", "0.01", "0.03")
"""Learning rates that are tried for RATES_TARGET, in the free form, on spare text."""
RATES_TARGET = 0.7
CHOSEN = {"stories260k": "0.003", "tinystories-656k": "0.01", "babyllama-1m": "0.0001", "llama-7m": "0.0003"}
"""Model -> the best of these rates."""

SEARCH = {
    f"fisher {way}": f"fisher{{target=params:TARGET,by={way},samples=10,seed=SEED}}" for way in ("uniform", "search")
}


@dataclass(frozen=True)
class Run:
    """One pipeline on one model.

    Attributes:
        part: the part of the benchmark, one of PARTS.
        model: the folder of the model.
        calibration: the calibration text.
        texts: the texts on which perplexity is measured.
        target: share of kept parameters.
        column: the column of the table, or the pipeline.
        pipeline: the pipeline, with TARGET, HALFWAY and SEED to be filled in; for LLM-Pruner's own code, a name.
        seed: the seed of the draw of calibration windows and of training; None for the first windows of the text. For
            LLM-Pruner's own code, the seed of the windows that the dense model writes; None if it reads only the ten.
        training: the recovery texts.
        written: number of windows that the dense model writes, in addition to the first ten, for LLM-Pruner's own code.
        refit: the text for refitting, if it is not that for the scores.
    """

    part: str
    model: str
    calibration: str
    texts: tuple[str, ...]
    target: float
    column: str
    pipeline: str
    seed: int | None = None
    training: tuple[str, ...] = ()
    written: int = 0
    refit: str | None = None

    @property
    def key(self) -> str:
        read = f"|{self.calibration}" if self.calibration == MIXED else ""
        read += "" if self.refit is None else f"|refitted on {self.refit}"
        return f"{self.part}|{self.model}|{self.target}|{self.pipeline}|{self.seed}{read}"

    @property
    def text(self) -> str:
        """The pipeline with its budget and seed; "halfway" is the mean of the budget and the dense model."""
        found = self.pipeline.replace("TARGET", f"{self.target:g}").replace("HALFWAY", f"{(1 + self.target) / 2:g}")
        return found.replace("SEED", "none" if self.seed is None else str(self.seed))


def runs(seeds: int) -> Iterator[Run]:
    """All runs, the cheapest parts first, and all runs of a seed before the next."""
    yield from scores_runs(seeds)
    for target in PAPER_RATIOS:
        yield from paper_runs(target)
        yield from halves_runs(target)
        for windows in SAME_WINDOWS:
            yield from criteria_runs(target, windows)
    for model in SCORES_MODELS:
        calibration, texts = texts_of(model)
        for target in SEARCH_TARGETS:
            for column, pipeline in SEARCH.items():
                for seed in range(seeds):
                    yield Run("search", model, calibration, texts, target, column, pipeline, seed)
    for run in scores_runs(seeds):
        if run.column in RECOVERED.values():
            yield recovering(run, "recovery", CHOSEN[run.model])
        if run.column == RECOVERED["free"] and run.target == RATES_TARGET and run.seed == 0:
            yield from (replace(recovering(run, "rate", rate), column=rate) for rate in RATES)


def paper_runs(target: float) -> Iterator[Run]:
    """The runs of the comparison with LLM-Pruner."""
    for pipeline in PAPER_PIPELINES:
        yield Run("paper", PAPER_MODEL, PAPER_CALIBRATION, TEXTS, target, pipeline, pipeline)
    for pipeline in PAPER_MORE:
        yield Run("paper", PAPER_MODEL, MIXED, TEXTS, target, pipeline, pipeline)


def halves_runs(target: float) -> Iterator[Run]:
    """Units chosen on one text and weights refitted on another or not at all, to see which needs more text."""
    for chosen, reads in CHOICES.items():
        for refitted, refit in REFITS.items():
            for score in ("fisher", "obs"):
                pipeline = f"{score}{{target=params:TARGET,by=global,{reads}}}{refit}"
                yield Run("halves", PAPER_MODEL, chosen, TEXTS, target, score, pipeline, refit=refitted)


def criteria_runs(target: float, windows: str) -> Iterator[Run]:
    """LLM-Pruner's own code on some of SAME_WINDOWS; criteria that use only weights run once."""
    count, seed, _ = SAME_WINDOWS[windows]
    for name, reads in CRITERIA.items():
        written, draw = (count, seed) if reads else (0, None)
        pipeline = f"LLM-Pruner, {name}, {PAPER_FIRST + written} windows"
        yield Run("criteria", PAPER_MODEL, PAPER_CALIBRATION, TEXTS, target, name, pipeline, draw, written=written)


def texts_of(model: str) -> tuple[str, tuple[str, ...]]:
    """The calibration text and the evaluation texts of a model."""
    return (PAPER_CALIBRATION, TEXTS) if model == PAPER_MODEL else (TEXTS[0], TEXTS[:1])


def recovering(run: Run, part: str, rate: str) -> Run:
    """The same with recovery after it. The calibration text comes first, as in benchmarks/recovery.py."""
    pipeline = run.pipeline + RECOVER.replace("LR", rate)
    return replace(run, part=part, pipeline=pipeline, training=tuple(reversed(run.texts)))


def scores_runs(seeds: int) -> Iterator[Run]:
    """Scores, and ways to distribute a budget."""
    for model in SCORES_MODELS:
        calibration, texts = texts_of(model)
        for seed in range(seeds):
            for target in SCORES_TARGETS:
                for column, pipeline in SCORES.items():
                    yield Run("scores", model, calibration, texts, target, column, pipeline, seed)
