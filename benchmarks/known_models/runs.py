"""What benchmarks/known_models measures: methods, budgets, draws, and which part of which text is for what."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
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
LLM_PRUNER, FLAP = "LLM-Pruner", "FLAP"


@dataclass(frozen=True)
class OwnCode:
    """A peer's own code instead of a pipeline of fxprune.

    Attributes:
        checkout: the name of its folder.
        option: what it is told: a criterion of LLM-Pruner, or whether FLAP's biases are kept.
        corrected: LLM-Pruner: whether kv heads are scored with their own query heads.
    """

    checkout: str
    option: str
    corrected: bool = False


Method = str | OwnCode

HELD = "damping=auto"
SWEPT = f"wanda{{{BUDGET},{READ}}},compensate{{{READ},{HELD}}}"
"""A cheap score before the refit whose options are chosen."""
CRITERIA = ("vector", "element1", "element2", "L2")
COMPENSATED, PLAIN = "compensated", "not compensated"
CHOICES: dict[str, dict[str, Method]] = {
    "LLM-Pruner's code": {criterion: OwnCode(LLM_PRUNER, criterion) for criterion in CRITERIA},
    "LLM-Pruner's code, kv corrected": {criterion: OwnCode(LLM_PRUNER, criterion, True) for criterion in CRITERIA},
    "FLAP's code": {way: OwnCode(FLAP, way) for way in (COMPENSATED, PLAIN)},
    "damping of the refit": {
        "auto": SWEPT,
        **{strength: SWEPT.replace(HELD, f"damping={strength}") for strength in ("0.001", "0.01", "0.1", "1")},
    },
    "calibration windows": {
        count: SWEPT.replace(f"samples={CALIBRATED}", f"samples={count}") for count in ("32", str(CALIBRATED))
    },
}
"""What is chosen -> its options, which are measured on the VALIDATION split at 0.8, on the first draw."""

CHOSEN = {
    "LLM-Pruner's code": "element1",
    "LLM-Pruner's code, kv corrected": "element1",
    "FLAP's code": PLAIN,
    "damping of the refit": "auto",
    "calibration windows": str(CALIBRATED),
}
"""What is chosen -> the option that all other rows have."""

METHODS: dict[str, Method] = {
    **{name: options[CHOSEN[name]] for name, options in CHOICES.items() if name.endswith(("code", "corrected"))},
    "paper": f"paper{{{BUDGET},seed=SEED}}",
    "taylor uniform": f"taylor{{{BUDGET},samples=10,seed=SEED}}",
    "wanda uniform": f"wanda{{{BUDGET},{READ}}}",
    "flap": f"flap{{{BUDGET},by=global,{READ}}}",
    "obs": f"obs{{{BUDGET},by=global,{READ}}}",
    "fisher, compensate": f"fisher{{{BUDGET},by=global,{READ}}},compensate{{{READ},{HELD}}}",
    "best, uniform": f"obs{{{BUDGET},{READ}}},compensate{{{READ},{HELD}}}",
    "best": f"best{{{BUDGET},{READ}}}",
}
"""Name -> pipeline, with KEPT and SEED to be filled in, or a peer's own code; nothing of it trains."""

WRITTEN = CALIBRATED - 10
MORE = f"samples={3 * CALIBRATED},seed=SEED"
ABLATIONS: dict[str, Method] = {
    "paper, compensate": f"paper{{{BUDGET},seed=SEED}},compensate{{{READ},{HELD}}}",
    "generate, paper, compensate": f"generate{{windows={WRITTEN},first=10,seed=SEED}},paper{{{BUDGET},seed=SEED}},"
    f"compensate{{{READ},{HELD}}}",
    "generate, best": f"generate{{windows={2 * CALIBRATED},first={CALIBRATED},seed=SEED}},"
    f"obs{{{BUDGET},by=global,{READ}}},compensate{{{MORE},{HELD}}}",
    "best_values": f"best_values{{{BUDGET},{READ}}}",
    "obs uniform": f"obs{{{BUDGET},{READ}}}",
    "obs by=kinds": f"obs{{{BUDGET},by=kinds,{READ}}}",
    "fisher": f"fisher{{{BUDGET},by=global,{READ}}}",
    "taylor global, compensate": f"taylor{{{BUDGET},by=global,{READ}}},compensate{{{READ},{HELD}}}",
}
"""Parts of the best pipeline and of the paper's, measured at 0.8 on the first draw."""

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
        method: one of METHODS or ABLATIONS, an option of CHOICES after its name and a colon, or DENSE.
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
    def method_text(self) -> Method:
        """The pipeline, as METHODS, ABLATIONS or CHOICES have it; or a peer's own code."""
        if self.method in METHODS:
            return METHODS[self.method]
        chosen, found, option = self.method.partition(CHOICE)
        return CHOICES[chosen][option] if found else ABLATIONS[self.method]

    def same(self, other: Run) -> bool:
        """Whether both measure the same, under two names."""
        if DENSE in (self.method, other.method):
            return self == other
        return replace(self, method=other.method) == other and self.method_text == other.method_text

    @property
    def own_code(self) -> OwnCode | None:
        """None for a pipeline of fxprune, and for the dense model."""
        found = None if self.method == DENSE else self.method_text
        return found if isinstance(found, OwnCode) else None

    @property
    def pipeline(self) -> str:
        """With its budget and its seed."""
        found = self.method_text
        assert isinstance(found, str)
        return found.replace("KEPT", f"{self.kept:g}").replace("SEED", str(self.seed))


CHOICE = ": "
"""Between the name of a choice and an option of it, as a method's name."""


def runs(model: str, split: str = EVALUATION) -> Iterator[Run]:
    """All rows of a model, in the order in which they are measured: the first draw of everything, then the next.

    With VALIDATION the options of CHOICES come first, otherwise ABLATIONS follow the first draw at the first size.
    """
    yield Run(model, DENSE, split=split)
    if split == VALIDATION:
        names = [f"{chosen}{CHOICE}{option}" for chosen, options in CHOICES.items() for option in options]
        yield from (Run(model, name, KEPT[0], split=split) for name in names)
    for seed in range(DRAWS):
        for kept in KEPT:
            yield from (Run(model, method, kept, seed, split) for method in METHODS)
            if (seed, kept, split) == (0, KEPT[0], EVALUATION):
                yield from (Run(model, method, kept, seed, split) for method in ABLATIONS)


def characters(folder: Path, text: str, use: str) -> str:
    """The part of a text for a use.

    Args:
        folder: the folder with NAME-calib.txt and NAME-eval.txt.
        text: one of TEXTS.
        use: one of SPLITS.
    """
    part, start, end = SPLITS[use]
    return (folder / f"{text}-{part}.txt").read_text(encoding="utf-8")[start:end]
