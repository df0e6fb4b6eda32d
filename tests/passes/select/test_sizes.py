"""Several sizes of one model: one scoring, and every size keeps a part of what the next larger one keeps."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fxprune import api
from fxprune.cli import main
from fxprune.ir import FxpruneError, RequestError
from fxprune.ir.groups import Group
from fxprune.passes.data import Scores
from fxprune.passes.model.measure import parameter_count
from fxprune.passes.pipeline import parse_pipeline
from fxprune.passes.registry import PASSES
from fxprune.passes.score.wanda import Wanda
from fxprune.passes.select.target import parse_sizes
from fxprune.passes.sizes import NestedSizes
from fxprune.passes.state import State

from ...states import decoder_state, run_passes
from .test_allocate import make

SHARES = (0.9, 0.8, 0.65)


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows by a name whenever units are scored."""
    times: list[str] = []
    scores = Wanda.scores

    def counted(self: Wanda, groups: Sequence[Group], state: State) -> Mapping[str, Scores]:
        times.append(self.name)
        return scores(self, groups, state)

    monkeypatch.setattr(Wanda, "scores", counted)
    return times


def pruned(sizes: NestedSizes, share: float, before: str, **options: Any) -> State:
    state = decoder_state(make("mistral").float(), sizes=sizes)
    earlier = parse_pipeline(before, PASSES) if before else ()
    run_passes(state, *earlier, Wanda(target=f"params:{share}", samples=4, length=8, **options))
    sizes.go_on()
    return state


@pytest.mark.parametrize(
    ("options", "before"),
    [
        ({"by": "uniform"}, ""),
        ({"by": "kinds"}, ""),
        ({"by": "global"}, "drop{layers=1,samples=2,length=8}"),
        ({"by": "global", "channels": True, "multiple_of": 2, "tolerance": 0.02}, ""),
        ({"by": "search", "moves": 8}, ""),
    ],
)
def test_every_size_is_a_part_of_the_larger_one(options: dict[str, Any], before: str, scored: list[str]) -> None:
    sizes, kept, shares = NestedSizes(), [], SHARES if not before else (0.6, 0.5)
    dense = parameter_count(make("mistral"))
    for share in shares:
        state = pruned(sizes, share, before, **options)
        assert state.ledger.plan is not None
        kept.append(state.ledger.plan.keep)
        reached = parameter_count(state.subject.model) / dense
        assert reached == pytest.approx(share, rel=options.get("tolerance", 0.005))
    assert len(scored) == 1
    for larger, smaller in itertools.pairwise(kept):
        assert larger.keys() <= smaller.keys()  # what is whole in the larger one may be cut in the smaller one
        assert all(np.isin(smaller[name], larger[name]).all() for name in larger)
    assert state.ledger.report["wanda"]["subset_of"] == f"params:{shares[-2]}"


def test_a_size_that_is_no_part_of_the_larger_one_is_a_failure() -> None:
    sizes = NestedSizes(kept={"a": np.array([0, 2])}, larger="params=0.9")
    with pytest.raises(FxpruneError, match=r"params=0\.8 would keep units of a that params=0\.9 does not keep"):
        sizes.choose("params=0.8", {"a": np.array([1])})


@pytest.mark.wide
def test_they_are_written_and_each_is_what_its_plan_gives(tmp_path: Path) -> None:
    text, out = "wanda{samples=4,length=16}", tmp_path / "{params}"
    results = api.apply_sizes("demo", text, target="params=0.9,0.7", out=out, form="uniform")
    assert [one.saved.path.name for one in results if one.saved] == ["0.9", "0.7"]
    assert results[1].kept == pytest.approx(0.7, abs=0.0035)
    replayed = api.apply("demo", plan=tmp_path / "0.7", out=tmp_path / "again", form="uniform")
    assert replayed.parameters == results[1].parameters
    written = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("0.7", "again")]
    assert written[0] == written[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.7", "0.9", "again"]
    assert results[1].report["wanda"]["subset_of"] == "params=0.9"


def test_the_command_line_shows_every_size(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["apply", "demo", "--pass", "random", "--target", "params=0.9,0.8", "--form", "uniform", "--dry-run"]
    assert main([*asked, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["sizes"]
    shares = [one["parameters"]["after"] / one["parameters"]["before"] for one in found]
    assert shares == [pytest.approx(0.9, abs=0.005), pytest.approx(0.8, abs=0.005)]
    assert main(asked) == 0
    assert "random: keeps a part of the units of params=0.9" in capsys.readouterr().out


def test_an_iterator_of_texts_is_read_for_all_sizes() -> None:
    texts = iter(["Once upon a time there was a fox who lived in a wood. " * 40])
    made = api.apply_sizes("demo", "wanda{samples=2,length=8}", target="params=0.9,0.8", calib=texts, dry_run=True)
    assert [one.kept for one in made] == [pytest.approx(share, abs=0.005) for share in (0.9, 0.8)]


def asked(
    target: str = "params=0.9,0.8", out: str | None = "sizes/{params}", text: str = "random", **given: Any
) -> Any:
    return lambda: api.apply_sizes("demo", text, target=target, out=out, **given)


@pytest.mark.parametrize(
    ("attempt", "message", "hint"),
    [
        (asked(out="small"), "--out small is one directory, and --target has 2 sizes", "--out 'small/{params}'"),
        (asked("macs=0.9,0.8"), "--out sizes/{params} is one directory", "{macs}"),
        (asked("params=0.8,0.9"), "target 'params=0.8,0.9' does not become smaller at 0.9", "the largest size first"),
        (asked("params=0.9,0.9"), "does not become smaller at 0.9", "the largest size first"),
        (asked("params=0.9,5e5"), "mixes shares and amounts", "all sizes as shares"),
        (asked("memory=6GB@8x4,5GB@16x4"), "mixes shares and amounts, or contexts", "the same context"),
        (asked("params=0.9,"), "target 'params=' needs a share", "params=0.8"),
        (asked(resume=True), "--resume has no effect on several sizes", "--scores"),
        (asked(ratio=0.2), "ratio=0.2 has no effect beside target", "one of the two"),
        (asked(text="random,magnitude"), "by one pass that prunes, and there are 2: random, magnitude", "all but one"),
        (asked(text="drop"), "no pass of 'drop' has an option 'target'", "passes with this option"),
        (
            lambda: api.apply("demo", "random", target="params=0.9,0.8", dry_run=True),
            "holds several sizes",
            "apply_sizes",
        ),
        (lambda: api.apply_sizes("demo", "random", target=0.8), "target is 0.8", "as text"),  # type: ignore[arg-type]
    ],
)
def test_what_is_refused(
    attempt: Any, message: str, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RequestError, match=re.escape(message)) as caught:
        attempt()
    assert hint in caught.value.hint
    assert not list(tmp_path.iterdir())


def test_a_directory_that_is_there_is_refused_before_the_first_size_is_made(tmp_path: Path) -> None:
    (tmp_path / "0.8").mkdir()
    (tmp_path / "0.8" / "mine").touch()
    with pytest.raises(RequestError, match=r"0\.8"):
        asked(out=str(tmp_path / "{params}"))()
    assert [path.name for path in tmp_path.iterdir()] == ["0.8"]


def test_sizes_are_read_with_their_measure() -> None:
    assert parse_sizes("memory:6GB@8x4,memory=5GB@8x4") == ["memory=6GB@8x4", "memory=5GB@8x4"]
    assert parse_sizes("params:0.9, 0.8") == ["params=0.9", "params=0.8"]
