"""How a row prunes: by a pipeline of fxprune, or by a peer's own code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fxprune.benchmarks.known_models.runs import CALIBRATED, COMPENSATED, LLM_PRUNER, WINDOW, OwnCode, Run


def cut(run: Run, model: Any, calibration: Any, code: Path | None) -> None:
    """Prune a model in place.

    Args:
        run: a row that is not the dense model's.
        model: of transformers, in float32.
        calibration: the text, of which each method reads its windows.
        code: the folder of checkouts of peers.
    """
    if run.own_code is None:
        _by_pipeline(run.pipeline, model, calibration)
    else:
        _by_own_code(run.own_code, run, model, calibration, code)


def _by_pipeline(pipeline: str, model: Any, calibration: Any) -> None:
    from fxprune.ir.verifier import verify
    from fxprune.passes.manager import run_pipeline
    from fxprune.passes.pipeline import parse_pipeline
    from fxprune.passes.registry import PASSES
    from fxprune.passes.state import Data, State, Subject
    from fxprune.passes.structure import ANALYSES
    from fxprune.tracer.export import trace_causal_lm

    traced = trace_causal_lm(model)
    state = State(Subject(traced.graph, model, example=traced.example), Data(calibration=calibration))
    run_pipeline(parse_pipeline(pipeline, PASSES), state, analyses=ANALYSES, verify=verify)


def _by_own_code(own: OwnCode, run: Run, model: Any, calibration: Any, code: Path | None) -> None:
    """The windows are those that a pipeline reads on the same draw."""
    if code is None:
        raise SystemExit(f"{run.method} is {own.checkout}'s own code: give --code, a folder of checkouts of peers")
    windows = calibration.windows(WINDOW, CALIBRATED, run.seed)
    if own.checkout == LLM_PRUNER:
        from fxprune.benchmarks.peers.grouped_llm_pruner import GroupedLLMPruner

        GroupedLLMPruner(code / own.checkout).cut_to(model, windows, own.option, run.kept, corrected=own.corrected)
    else:
        from fxprune.benchmarks.peers.flap_code import FLAP

        FLAP(code / own.checkout).cut_to(model, windows, run.kept, compensated=own.option == COMPENSATED)
