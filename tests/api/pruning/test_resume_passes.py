"""--resume after each pass of each pipeline gives the bytes of a run that did not break off."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from transformers import GPT2Config, MixtralConfig

from fxprune import api
from fxprune.api.pruning import asked_passes, resume
from fxprune.backends.artifact import RECORD
from fxprune.backends.huggingface import weight_source
from fxprune.ir.cost import macs_of
from fxprune.passes.base import Pass, PassKind
from fxprune.passes.registry import PASSES
from fxprune.passes.select import latency
from fxprune.passes.select.latency import Clock
from fxprune.passes.shrink.cut import cut
from fxprune.passes.state import State

from ...checkpoints import TIED, contents
from ...word_models import byte_level, for_transformers
from .interrupted import GPT2, write_source

SHORT, RECOVERY = "samples=4,length=8", "steps=2,batch=2,length=8"

PAIRS = for_transformers(byte_level)
MANY_TOKENS = GPT2Config(**GPT2.to_dict() | {"vocab_size": len(PAIRS)})

MIXTURE = MixtralConfig(
    vocab_size=GPT2.vocab_size, hidden_size=32, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, num_local_experts=8, num_experts_per_tok=1, max_position_embeddings=64,
)  # fmt: skip

LEARNED = GPT2Config(**GPT2.to_dict() | {"n_layer": 3})


@dataclass(frozen=True, kw_only=True)
class Case:
    """A pipeline on a model.

    Attributes:
        passes: pipeline text.
        config: of the model; a Llama of three layers when None.
        source, options: how it is written, and how it is pruned.
    """

    passes: str
    config: Any = None
    source: dict[str, Any]
    options: dict[str, Any]


def case(passes: str, config: Any = None, *, slow: bool = False, source: Any = None, **options: Any) -> Any:
    """A row of the table: a pipeline that is broken off after each of its passes."""
    row = Case(passes=passes, config=config, source=source or {}, options=options)
    return pytest.param(row, id=passes.replace("{", "(").replace("}", ")"), marks=[pytest.mark.slow] if slow else [])


CASES = [
    case(f"generate{{windows=8,length=8,first=2}},fisher{{{SHORT}}},compensate{{{SHORT}}}", TIED),
    case(
        f"finetune{{{RECOVERY}}},taylor{{{SHORT}}},distill{{{RECOVERY}}}", source={"dtype": torch.float32},
    ),
    case(f"drop{{layers=1,{SHORT}}},wanda{{{SHORT}}},lora{{{RECOVERY},keep_adapter=true}},random", scores=True),
    case(f"turn{{{SHORT}}},obs{{{SHORT},values=true}},compensate{{{SHORT}}}"),
    case(f"turn{{{SHORT}}},fisher{{{SHORT},values=true}},distill{{{RECOVERY}}}", slow=True, offload="disk"),
    case(f"vocabulary,taylor{{{SHORT}}},distill{{{RECOVERY}}}", MANY_TOKENS, source={"words": PAIRS}, slow=True),
    case(f"reap{{{SHORT}}},expert_channels{{{SHORT}}},compensate{{{SHORT}}}", MIXTURE, slow=True),
    case(f"frequency{{{SHORT}}},activation_norm{{{SHORT}}},random", MIXTURE, slow=True),
    case(f"obs{{{SHORT}}},compensate{{{SHORT}}},flap{{{SHORT}}}", slow=True),
    case(f"drop{{sub_blocks=2,{SHORT}}},activation{{{SHORT}}},compensate{{{SHORT}}}", LEARNED, slow=True),
    case(f"taylor{{{SHORT}}},drop{{layers=1,sub_blocks=1,{SHORT}}},magnitude,compensate{{{SHORT}}}", slow=True),
    case(f"random{{channels=true}},lora{{{RECOVERY},teacher=0.5}},magnitude", slow=True),
    case("random,magnitude{channels=true},random", slow=True),  # weights on disk
    case(f"wanda{{{SHORT}}},drop{{layers=1,{SHORT}}},fisher{{{SHORT}}}", slow=True, offload="disk"),
    case(f"wanda{{{SHORT},by=search,moves=2}},magnitude", slow=True, scores=True),
    case(f"taylor{{{SHORT},target=latency:0.8,by=global}},compensate{{{SHORT}}}", slow=True, ratio=None),
    case(
        f"finetune{{{RECOVERY}}},drop{{layers=1,{SHORT}}},taylor{{{SHORT}}},compensate{{{SHORT}}},distill{{{RECOVERY}}}",
        TIED, slow=True,
    ),
]  # fmt: skip


def test_every_pass_is_in_a_pipeline() -> None:
    pipelines = ",".join(row.values[0].passes for row in CASES)
    assert not [cls.name for cls in PASSES if f"{cls.name}{{" not in pipelines and f"{cls.name}," not in pipelines]


@pytest.fixture
def stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[int, Path]:
    """Number of finished passes -> a copy of the stage that a run saved after them."""
    found: dict[int, Path] = {}
    keep = resume.Stages.keep

    def keeping(self: resume.Stages, done: int, *what: Any) -> None:
        keep(self, done, *what)
        if done not in found and self.done == done:
            found[done] = Path(shutil.copytree(self.folder, tmp_path / f"stage {done}"))

    monkeypatch.setattr(resume.Stages, "keep", keeping)
    monkeypatch.setattr(weight_source, "verify_written", lambda *_: {})
    monkeypatch.setattr(Clock, "_timed", lambda _clock, op: macs_of(op))  # the same on every machine
    monkeypatch.setattr(latency, "forward_seconds", lambda _subject: 0.0)
    return found


def applies(row: Case, source: Path, text: Path) -> Callable[..., api.Applied]:
    """A function that applies the pipeline of a row."""
    reads = row.passes.split("{")[0].split(",")[0] != "random" or "lora" in row.passes
    trains = any(name in row.passes for name in ("lora", "distill", "finetune"))
    texts = ({"calib": text} if reads else {}) | ({"data": text} if trains else {})
    options: dict[str, Any] = {"ratio": 0.5, "resume": True, "force": True, **texts, **row.options}
    if options.pop("scores", False):
        options["scores"] = source.parent / "scores.safetensors"

    def apply(out: Path, **others: Any) -> api.Applied:
        if "scores" in options:
            options["scores"].unlink(missing_ok=True)
        return api.apply(source, row.passes, out=out, **options | others)

    return apply


@pytest.mark.first_rows(1)
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("row", CASES)
def test_broken_off_after_each_pass(row: Case, tmp_path: Path, text: Path, stages: dict[int, Path]) -> None:
    source = write_source(tmp_path / "source", row.config, **row.source)
    apply = applies(row, source, text)
    torch.manual_seed(1)
    whole = apply(tmp_path / "out")
    written, scores = contents(tmp_path / "out"), tmp_path / "scores.safetensors"
    scored = scores.read_bytes() if scores.exists() else b""
    steps = whole.to_json()["pipeline"].count("},") + 1
    assert set(stages) == {*range(1, max(stages) + 1)}
    assert max(stages) >= 3 or steps < 3
    for done, stage in sorted(stages.items()):
        shutil.copytree(stage, tmp_path / ".out.stages")
        torch.manual_seed(done + 1)
        applied = apply(tmp_path / "out")
        assert applied.resumed, done
        assert contents(tmp_path / "out") == written, done
        assert [step.text for step in applied.steps] == [step.text for step in whole.steps], done
        assert json.dumps(applied.to_record()) == json.dumps(whole.to_record()), done
        assert (scores.read_bytes() if scores.exists() else b"") == scored, done
        assert not (tmp_path / ".out.stages").exists()


@dataclass(frozen=True, kw_only=True)
class Halved(Pass):
    """A pass of somebody else: halves every weight, and perhaps does more."""

    name: ClassVar[str] = "halved"
    kind: ClassVar[PassKind] = PassKind.SCORE
    needs: ClassVar[tuple[str, ...]] = ("couple",)
    invalidates: ClassVar[tuple[str, ...]] = ("couple",)

    cuts: ClassVar[bool] = False
    replaces: ClassVar[bool] = False

    def run(self, state: State) -> None:
        coupling, model = state.subject.coupling, state.subject.model
        assert coupling is not None
        if self.cuts:
            group = next(g for g in coupling.prunable if g.kind.value == "width")
            cut(state, coupling, {group.name: torch.arange(1, group.units).numpy()})
        if self.replaces:
            model.model.norm = torch.nn.RMSNorm(32, eps=1e-6)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(0.5)
        state.ledger.report[self.name] = {}


@dataclass(frozen=True, kw_only=True)
class HalvedCutting(Halved):
    """Cuts too, by the way that is open to everybody."""

    cuts: ClassVar[bool] = True


@dataclass(frozen=True, kw_only=True)
class HalvedReplacing(Halved):
    """Puts another module into the model, which nobody can repeat."""

    replaces: ClassVar[bool] = True


@pytest.fixture
def brought(monkeypatch: pytest.MonkeyPatch) -> Callable[[type[Pass]], None]:
    """Makes a pass known under its name."""
    return lambda found: monkeypatch.setattr(asked_passes, "all_passes", lambda: (*PASSES, found))


@pytest.mark.parametrize("found", [pytest.param(Halved, marks=pytest.mark.slow), HalvedCutting])
def test_a_pass_of_somebody_else_that_cuts_and_changes_values(
    found: type[Pass], brought: Any, stages: dict[int, Path], tmp_path: Path, text: Path
) -> None:
    brought(found)
    row = Case(passes="halved,magnitude", source={}, options={})
    apply = applies(row, write_source(tmp_path / "source"), text)
    apply(tmp_path / "out")
    written = contents(tmp_path / "out")
    shutil.copytree(stages[1], tmp_path / ".out.stages")
    record = json.loads((stages[1] / RECORD).read_text())["stage"]["data"]["state"]
    assert len(record["values"]["subject"]) == len(record["changed"]["subject"]) > 0
    assert apply(tmp_path / "out").resumed
    assert contents(tmp_path / "out") == written


def test_a_pass_that_cannot_be_repeated_is_not_saved(
    brought: Any, stages: dict[int, Path], tmp_path: Path, text: Path
) -> None:
    brought(HalvedReplacing)
    row = Case(passes="magnitude,halved,magnitude", source={}, options={})
    said: list[str] = []
    applies(row, write_source(tmp_path / "source"), text)(tmp_path / "out", progress=said.append)
    assert set(stages) == {1}
    assert "not saved for --resume: pass halved cannot be repeated" in said
