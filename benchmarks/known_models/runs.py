"""What benchmarks/known_models measures: methods, budgets, draws, and which part of which text is for what."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

TEXTS = ("tinystories", "wikitext2", "bookcorpus")
EVALUATION, VALIDATION, CALIBRATION = "evaluation", "validation", "calibration"
SPLITS: dict[str, tuple[str, int, int | None]] = {
    CALIBRATION: ("calib", 0, 300_000),
    VALIDATION: ("calib", 300_000, 400_000),
    EVALUATION: ("eval", 0, None),
}
"""Use -> which of the files of every text, and its characters from where to where. Options of methods (damping, numbers
of windows) are chosen by ``--split validation``; nothing is chosen on what is evaluated."""

WINDOW, EVALUATED, CALIBRATED = 128, 60, 128
"""Tokens in a window; windows of each evaluation text; calibration windows of a draw, from all three texts."""

DENSE = "dense"

KEPT = (0.8, 0.9, 0.7)
"""Shares of all parameters, embeddings included; the first is measured first."""
DRAWS = 3

BUDGET = "target=params:KEPT"
READ = f"samples={CALIBRATED},seed=SEED"
METHODS = {
    "paper": f"paper{{{BUDGET},seed=SEED}}",
    "taylor uniform": f"taylor{{{BUDGET},samples=10,seed=SEED}}",
    "wanda uniform": f"wanda{{{BUDGET},{READ}}}",
    "flap": f"flap{{{BUDGET},by=global,{READ}}}",
    "obs": f"obs{{{BUDGET},by=global,{READ}}}",
    "fisher, compensate": f"fisher{{{BUDGET},by=global,{READ}}},compensate{{{READ}}}",
    "best, uniform": f"obs{{{BUDGET},{READ}}},compensate{{{READ}}}",
    "best": f"best{{{BUDGET},{READ}}}",
}
"""Name -> pipeline, with KEPT and SEED to be filled in; nothing of it trains."""

PROMPTS = (
    "The capital of France is",
    "Water is made of hydrogen and",
    "Once upon a time there was a little girl who",
    "Two plus two equals",
    "The opposite of hot is",
    "To make a cup of tea, first",
    "The largest planet of the solar system is",
    "She opened the door and saw",
    "In 1969, humans first walked on",
    "My favourite food is pizza because",
)
ANSWER = 16
"""Tokens that are written after each prompt, the most probable one each time."""


@dataclass(frozen=True)
class Run:
    """One row: a method at a size, on one draw of the calibration windows.

    Attributes:
        model: the folder of the model.
        method: one of METHODS, or ``dense``.
        kept: share of parameters.
        seed: of the draw.
        split: what is measured on, EVALUATION or VALIDATION.
    """

    model: str
    method: str
    kept: float = 1.0
    seed: int = 0
    split: str = EVALUATION

    @property
    def key(self) -> str:
        validated = "" if self.split == EVALUATION else f"|{self.split}"
        return f"{self.model}|{self.method}|{self.kept:g}|{self.seed}{validated}"

    @classmethod
    def of(cls, key: str) -> Run:
        """The run that has a key."""
        model, method, kept, seed, *split = key.split("|")
        return cls(model, method, float(kept), int(seed), *split)

    @property
    def pipeline(self) -> str:
        return METHODS[self.method].replace("KEPT", f"{self.kept:g}").replace("SEED", str(self.seed))


def runs(model: str, split: str = EVALUATION) -> Iterator[Run]:
    """All rows of a model, in the order in which they are measured: the first draw of everything, then the next."""
    yield Run(model, "dense", split=split)
    for seed in range(DRAWS):
        for kept in KEPT:
            for method in METHODS:
                yield Run(model, method, kept, seed, split)


def characters(folder: Path, text: str, use: str) -> str:
    """The part of a text for a use.

    Args:
        folder: the folder with NAME-calib.txt and NAME-eval.txt.
        text: one of TEXTS.
        use: one of SPLITS.
    """
    part, start, end = SPLITS[use]
    return (folder / f"{text}-{part}.txt").read_text(encoding="utf-8")[start:end]
