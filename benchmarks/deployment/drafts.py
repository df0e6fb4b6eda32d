"""A model with layers taken out as the draft of itself: acceptance, accepted tokens and speed, by depth.

    OMP_NUM_THREADS=1 python -m fxprune.benchmarks.deployment.drafts MODEL --calib a.txt --text b.txt --greedy 4

Everything runs in one process, so that a large model is loaded once: layers are chosen by ``drop{by=acceptance}`` (the
first ``--greedy`` ones, one after the other) or ``drop{by=influence}``, and timed as ``fxprune bench --draft`` does.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import Any

import torch

from fxprune.api.benchmarking.drafting import Race
from fxprune.api.inputs.seen_texts import text_of
from fxprune.api.sources import open_source
from fxprune.passes.drop.acceptance import Acceptance
from fxprune.passes.drop.choice import block_influence, by_gauge
from fxprune.passes.drop.greedy import gauge_of
from fxprune.passes.model.blocks import find_blocks, keep_blocks
from fxprune.passes.model.measure import parameter_count
from fxprune.runtime.streaming.block_runner import BlockRunner
from fxprune.runtime.tensors import twin
from fxprune.tracer.model import load_model


def shallower(model: torch.nn.Module, gone: Sequence[int]) -> Any:
    """The model without some layers; it shares the values of the others."""
    made = twin(model)
    blocks = find_blocks(made)
    keep_blocks(made, blocks, [at for at in range(len(blocks.modules)) if at not in gone])
    return made


def main() -> None:
    """Print a row for every draft."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--calib", required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--greedy", type=int, default=0)
    parser.add_argument("--influence", type=int, nargs="*", default=[])
    parser.add_argument("--length", type=int, default=16, help="tokens of the calibration window")
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument("--prompt", type=int, default=32)
    parser.add_argument("--new", type=int, default=16)
    parser.add_argument("--draft-tokens", type=int, default=4)
    given = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    with open_source(given.model) as source:
        model = load_model(source)
        tokens = text_of(given.calib, "calibration", source).windows(given.length, 1)
        held_out = text_of(given.text, "evaluation", source)
        runner, blocks = BlockRunner(model), find_blocks(model)
        choices: dict[str, Sequence[int]] = {}
        if given.greedy and (gauge := gauge_of("acceptance", runner, tokens)) is not None:
            order, scores = by_gauge(runner, blocks, given.greedy, gauge)
            print(
                f"acceptance on the calibration window, layer by layer: {dict(zip(order, scores, strict=True))}",
                flush=True,
            )
            choices |= {f"{given.greedy} by acceptance": order, "1 by acceptance": order[:1]}
        influence = block_influence(runner, blocks, tokens)
        by_influence = sorted(range(len(influence)), key=lambda at: influence[at])
        choices |= {f"{count} by influence": by_influence[:count] for count in given.influence}
        windows = held_out.windows(given.prompt, given.prompts)
        measured = Acceptance(runner, windows)
        for name, gone in choices.items():
            draft = shallower(model, gone)
            accepted = measured.of(BlockRunner(draft))
            race = Race(model, draft, windows, given.new, given.draft_tokens)
            steps, drafted, kept, alone, assisted, speedup = race.run(1, lambda _: None)
            print(
                f"| {name} | {parameter_count(draft):,} | {accepted:.3f} | {kept:.2f} | {steps} | {drafted} | "
                f"{alone.median:.2f} | {assisted.median:.2f} | {speedup.median:.2f} |",
                flush=True,
            )
            race.close()


if __name__ == "__main__":
    main()
