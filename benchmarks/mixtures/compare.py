"""Compares scores of experts on the mixture that train.py makes: perplexity after pruning, for docs/mixtures.md.

python benchmarks/mixtures/compare.py --model out/mixture --text ../shared/text --rows out/mixture.json

Scores and refits read the first windows of the ``-calib`` texts, half of each; perplexity is of the first windows of
128 tokens of the ``-eval`` texts. All rows are measured on the same windows, so that standard errors are those of the
differences, window by window. Rows that the file holds are not run again.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import time
from pathlib import Path
from typing import Any

import torch

TEXTS = ("tinystories", "wikitext2")
SAMPLES = 24
SCORES = {
    "random": "random{heads=off,ffn=false,experts=true,seed=0,RATIO}",
    "magnitude": "magnitude{heads=off,ffn=false,experts=true,RATIO}",
    "taylor": f"taylor{{heads=off,ffn=false,experts=true,samples={SAMPLES},RATIO}}",
    "frequency": f"frequency{{samples={SAMPLES},RATIO}}",
    "activation_norm": f"activation_norm{{samples={SAMPLES},RATIO}}",
    "activation_norm, square": f"activation_norm{{moment=square,samples={SAMPLES},RATIO}}",
    "reap": f"reap{{samples={SAMPLES},RATIO}}",
    "channels: fisher": f"fisher{{heads=off,samples={SAMPLES},RATIO}}",
    "channels: expert_channels": f"expert_channels{{samples={SAMPLES},RATIO}}",
    "channels: expert_channels, taylor": f"expert_channels{{score=taylor,samples={SAMPLES},RATIO}}",
}
REFIT = f",compensate{{samples={SAMPLES}}}"


class Bench:
    """A model, its trace, and windows ``[N, 128]`` to measure on."""

    def __init__(self, model: Path, text: Path, windows: int) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from fxprune.tracer.export import trace_causal_lm
        from fxprune.tracer.texts.corpus import from_string

        self.model = AutoModelForCausalLM.from_pretrained(model, dtype="float32").eval()
        tokenizer = AutoTokenizer.from_pretrained(model)

        def read(name: str, part: str) -> str:
            return (text / f"{name}-{part}.txt").read_text(encoding="utf-8")

        held_out = [from_string(name, read(name, "eval"), tokenizer) for name in TEXTS]
        self.windows = torch.cat([corpus.windows(128, windows) for corpus in held_out])
        self.calibration = torch.cat(
            [from_string(name, read(name, "calib"), tokenizer).windows(128, SAMPLES // 2) for name in TEXTS]
        )
        self.traced = trace_causal_lm(self.model)

    def losses(self, model: Any) -> list[float]:
        """Mean loss of every window, in nats per token."""
        found = []
        with torch.no_grad():
            for part in self.windows.split(8):
                logits = model(input_ids=part, use_cache=False).logits[:, :-1]
                each = torch.nn.functional.cross_entropy(logits.transpose(1, 2), part[:, 1:], reduction="none")
                found += each.double().mean(1).tolist()
        return found

    def run(self, pipeline: str) -> dict[str, Any]:
        """Parameters that stay, CPU seconds of the pipeline, and the losses."""
        from fxprune.ir.verifier import verify
        from fxprune.passes.manager import run_pipeline
        from fxprune.passes.model.measure import parameter_count
        from fxprune.passes.pipeline import parse_pipeline
        from fxprune.passes.registry import PASSES
        from fxprune.passes.state import Data, State, Subject
        from fxprune.passes.structure import ANALYSES

        model = copy.deepcopy(self.model)
        state = State(Subject(self.traced.graph, model, example=self.traced.example), Data(calibration=_Windows(self)))
        started = time.process_time()
        run_pipeline(parse_pipeline([pipeline], PASSES), state, analyses=ANALYSES, verify=verify)
        seconds = time.process_time() - started
        kept = parameter_count(state.subject.model) / parameter_count(self.model)
        return {"kept": kept, "seconds": seconds, "losses": self.losses(state.subject.model)}


class _Windows:
    """The calibration windows as a corpus."""

    name = "half of each -calib text"

    def __init__(self, bench: Bench) -> None:
        self._windows = bench.calibration

    def windows(self, length: int, samples: int, seed: int | None = None) -> torch.Tensor:
        del seed
        order = torch.arange(len(self._windows)).view(2, -1).T.flatten()  # of either text in turn
        return self._windows[order[:samples], :length]


def table(rows: dict[str, Any]) -> str:
    """A markdown table: increases of the mean loss over the dense model, with paired standard errors."""
    dense = torch.tensor(rows["dense"]["losses"], dtype=torch.float64).view(len(TEXTS), -1)
    lines = ["| removed | score | then | kept | perplexity | increase of the loss, in 0.001 nats | less than reap |"]
    lines.append("|---|---|---|---|---|---|---|")
    shown = " / ".join(f"{value:.2f}" for value in dense.mean(1).exp())
    lines.append(f"| | dense | | 1 | {shown} | | |")
    for ratio in ("0.25", "0.5"):
        for name in SCORES:
            for then in ("", "compensate"):
                row, reap = rows.get(f"{ratio} {name} {then}"), rows.get(f"{ratio} reap {then}")
                if row is None:
                    continue
                own = torch.tensor(row["losses"], dtype=torch.float64).view(len(TEXTS), -1)
                shown = " / ".join(f"{value:.2f}" for value in own.mean(1).exp())
                gained = (
                    "" if reap is None or name == "reap" else _paired(torch.tensor(reap["losses"]).view_as(own) - own)
                )
                lines.append(
                    f"| {ratio} | {name} | {then} | {row['kept']:.4f} | {shown} | {_paired(own - dense)} | {gained} |"
                )
    return "\n".join(lines)


def _paired(differences: torch.Tensor) -> str:
    """Mean difference of all windows and its standard error."""
    flat = differences.double().flatten() * 1000
    return f"{flat.mean():.0f} ± {flat.std() / len(flat) ** 0.5:.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", required=True, type=Path, help="directory that train.py wrote")
    parser.add_argument("--text", required=True, type=Path, help="folder of NAME-calib.txt and NAME-eval.txt")
    parser.add_argument(
        "--rows", required=True, type=Path, nargs="+", help="JSON files with rows; the first is written"
    )
    parser.add_argument("--only", default="", help="measure rows of this ratio only")
    parser.add_argument("--then", choices=("", "compensate"), help="measure rows with or without a refit only")
    parser.add_argument("--windows", type=int, default=32, help="evaluation windows of each text")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    found = [json.loads(path.read_text(encoding="utf-8")) for path in options.rows if path.exists()]
    rows: dict[str, Any] = {key: row for part in found for key, row in part.items()}
    bench = Bench(options.model, options.text, options.windows)
    wanted = {f"{ratio} {name} {then}": (ratio, name, then)
              for then in ("", "compensate") for ratio in ("0.25", "0.5") for name in SCORES}  # fmt: skip
    if "dense" not in rows:
        rows["dense"] = {"losses": bench.losses(bench.model)}
    for key, (ratio, name, then) in wanted.items():
        if key not in rows and options.only in ("", ratio) and options.then in (None, then):
            rows[key] = bench.run(SCORES[name].replace("RATIO", f"ratio={ratio}") + (REFIT if then else ""))
            options.rows[0].write_text(json.dumps(rows), encoding="utf-8")
            print(key, f"{rows[key]['seconds']:.1f} CPU s", flush=True)
    print(table(rows))


if __name__ == "__main__":
    main()
