"""Replaying a plan: the bytes of the run that made it, on any checkpoint of the architecture, or a clear refusal."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_tensors
from transformers import GPT2Config, LlamaConfig

from fxprune import api
from fxprune.api.pruning import model_run
from fxprune.backends.artifact import FORMER_PLAN, PLAN, RECORD
from fxprune.backends.huggingface import weight_source
from fxprune.backends.replaceable import CARD
from fxprune.cli import main
from fxprune.ir.errors import FxpruneError, RequestError

from ...checkpoints import LLAMA, TIED, WIDTHS, contents, write_checkpoint

QUERY = "model.layers.0.self_attn.q_proj.weight"
UP = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture(autouse=True)
def _no_fresh_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written is compared byte by byte here."""
    monkeypatch.setattr(weight_source, "verify_written", lambda *_: {})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a source, and an artifact of it."""
    folder = tmp_path_factory.mktemp("made")
    write_checkpoint(folder / "source", shard_size="20kB")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weight_source, "verify_written", lambda *_: {})
        api.apply(folder / "source", "magnitude", ratio=0.5, out=folder / "out")
    return folder


@pytest.mark.wide
@pytest.mark.parametrize(
    ("config", "passes"),
    [
        pytest.param(LLAMA, "magnitude{ratio=0.5}", id="kv heads and widths"),
        pytest.param(LLAMA, "magnitude{ratio=0.5,heads=query}", id="query heads within each kv head"),
        pytest.param(LLAMA, "magnitude{ratio=0.25,channels=true}", id="the residual width"),
        pytest.param(TIED, "random{ratio=0.25},magnitude{ratio=0.25}", id="two passes, tied", marks=pytest.mark.slow),
        pytest.param(LLAMA, "magnitude{ratio=0.5,layers=1:2}", id="a range of layers, free form"),
        pytest.param(GPT2Config(n_embd=32, n_head=4, n_layer=1, vocab_size=26, n_positions=32), "random", id="fused"),
        pytest.param(LLAMA, "random{ratio=0}", id="nothing"),
    ],
)
def test_a_replay_gives_the_bytes_of_the_run(
    config: LlamaConfig, passes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_checkpoint(tmp_path / "source", config)
    api.apply(source, passes, out=tmp_path / "out")
    api.apply(source, plan=tmp_path / "out" / PLAN, out=tmp_path / "streamed")
    monkeypatch.setattr(model_run, "open_streamed_model", lambda *_, **__: "")
    api.apply(source, plan=tmp_path / "out" / PLAN, out=tmp_path / "held")
    assert contents(tmp_path / "streamed", RECORD, CARD) == contents(tmp_path / "out", RECORD, CARD)
    assert contents(tmp_path / "held") == contents(tmp_path / "streamed")


def test_a_replay_fits_another_checkpoint_of_the_architecture(made: Path, tmp_path: Path) -> None:
    other = write_checkpoint(tmp_path / "other", seed=1)
    api.apply(other, plan=made / "out", out=tmp_path / "out")
    kept = load_file(made / "out" / PLAN)
    source = load_tensors(other / "model.safetensors")[UP]
    written = load_tensors(tmp_path / "out" / "model.safetensors")[UP]
    assert torch.equal(written, source.index_select(0, torch.from_numpy(kept[f"{UP}:0"])))


def test_passes_run_after_the_replay(made: Path, tmp_path: Path) -> None:
    applied = api.apply(made / "source", "random{ratio=0.5,heads=off}", plan=made / "out", out=tmp_path / "out")
    assert [step.name for step in applied.steps if not step.is_analysis] == ["replay", "random"]
    assert load_tensors(tmp_path / "out" / "model.safetensors")[UP].shape == (12, 32)


def test_an_artifact_whose_plan_has_its_former_name_is_replayed(made: Path, tmp_path: Path) -> None:
    former = shutil.copytree(made / "out", tmp_path / "made")
    (former / PLAN).rename(former / FORMER_PLAN)
    api.apply(made / "source", plan=former, out=tmp_path / "out")
    api.apply(made / "source", plan=former / FORMER_PLAN, out=tmp_path / "again")
    assert contents(tmp_path / "out") == contents(tmp_path / "again")
    assert contents(tmp_path / "out", RECORD, CARD) == contents(made / "out", RECORD, CARD)


def test_the_command_line_replays_and_says_what_it_did(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [
        "apply",
        str(made / "source"),
        "--plan",
        str(made / "out" / PLAN),
        "--out",
        str(tmp_path / "out"),
        "--json",
    ]
    assert main(command) == 0
    said = json.loads(capsys.readouterr().out)
    record = json.loads((tmp_path / "out" / RECORD).read_text())
    assert said["pipeline"] == record["pipeline"]
    assert record["pipeline"].startswith("replay{sha256=")
    assert record["parameters"] == json.loads((made / "out" / RECORD).read_text())["parameters"]


Plan = dict[str, np.ndarray]


def changed(key: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Plan], Plan]:
    return lambda plan: plan | {key: np.ascontiguousarray(change(plan[key]))}


BAD_PLANS = [
    (lambda p: p | {"model.norm.bias:0": np.arange(3)}, "slices 'model.norm.bias', which the model does not have"),
    (lambda p: p | {f"{UP}:2": np.arange(3)}, f"slices dimension 2 of '{UP}', whose shape is (48, 32)"),
    (changed(f"{UP}:0", lambda k: np.append(k[:-1], 48)), f"dimension 0 of '{UP}' do not ascend within 0 to 47"),
    (
        changed(f"{UP}:0", lambda k: np.append(k[:-1], k[-2])),
        f"the indices of '{UP}:0' are empty, negative or not ascending",
    ),
    (changed(f"{UP}:0", lambda k: k[::-1]), f"the indices of '{UP}:0' are empty, negative or not ascending"),
    (changed(f"{UP}:0", lambda k: k - 1 - k[0]), f"the indices of '{UP}:0' are empty, negative or not ascending"),
    (changed(f"{UP}:0", lambda k: k.astype(np.int32)), f"is not a plan: its entry '{UP}:0' is int32"),
    (changed(f"{UP}:0", lambda k: k[:-1]), "split a unit"),
    (changed(f"{QUERY}:0", lambda k: k[:-1]), "split a unit"),
    (lambda p: {k: v for k, v in p.items() if k != f"{UP}:0"}, f"dimension 0 of '{UP}' split a unit"),
    (lambda p: p | {"lm_head.weight:0": np.arange(20)}, "the plan cuts lm_head:channels, which is frozen"),
]


@pytest.mark.parametrize(("change", "message"), BAD_PLANS, ids=[message for _, message in BAD_PLANS])
def test_a_bad_plan_is_refused(change: Callable[[Plan], Plan], message: str, made: Path, tmp_path: Path) -> None:
    plan = tmp_path / "changed.safetensors"
    save_file(change(load_file(made / "out" / PLAN)), plan)
    with pytest.raises(RequestError) as caught:
        api.apply(made / "source", plan=plan, out=tmp_path / "out")
    assert message in caught.value.message
    assert "plan" in caught.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["changed.safetensors"]


def test_a_plan_for_another_architecture_or_another_shape_is_refused(made: Path, tmp_path: Path) -> None:
    gpt2 = GPT2Config(n_embd=32, n_head=4, n_layer=1, vocab_size=26, n_positions=32)
    smaller = LlamaConfig(**WIDTHS | {"intermediate_size": 24})
    old = tmp_path / "old.plan"  # as earlier versions wrote it: without sizes
    save_file(load_file(made / "out" / PLAN), old)
    for config, message in ((gpt2, "which the model does not have"), (smaller, "do not ascend within 0 to 23")):
        source = write_checkpoint(tmp_path / "other", config)
        with pytest.raises(RequestError) as caught:
            api.apply(source, plan=old, out=tmp_path / "out")
        assert message in caught.value.message
        assert "another model" in caught.value.hint
        with pytest.raises(RequestError, match="was made for another model"):
            api.apply(source, plan=made / "out", out=tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_a_plan_for_a_wider_model_is_refused_although_its_indices_fit(made: Path, tmp_path: Path) -> None:
    wider = write_checkpoint(tmp_path / "wider", LlamaConfig(**WIDTHS | {"intermediate_size": 96}))
    alone = shutil.copy(made / "out" / PLAN, tmp_path / "alone.plan")
    for plan in (made / "out", alone):
        with pytest.raises(RequestError, match=r"has 96 indices here, and had 48 there") as caught:
            api.apply(wider, plan=plan, out=tmp_path / "out")
        assert "same architecture and sizes" in caught.value.hint
    deeper = write_checkpoint(tmp_path / "deeper", LlamaConfig(**WIDTHS | {"num_hidden_layers": 3}))
    with pytest.raises(RequestError, match=r"of [\d,]+ parameters, where this one has [\d,]+$") as caught:
        api.apply(deeper, plan=made / "out", out=tmp_path / "out")
    assert f"copy it away from its {RECORD}" in caught.value.hint
    api.apply(deeper, plan=alone, out=tmp_path / "third layer whole")  # the plan says nothing of it
    frozen = write_checkpoint(tmp_path / "frozen", LlamaConfig(**WIDTHS | {"num_key_value_heads": 1}))
    with pytest.raises(RequestError):
        api.apply(frozen, plan=made / "out", out=tmp_path / "out")


def test_a_source_that_changed_is_refused_unless_the_plan_stands_alone(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "out", tmp_path / "made")
    changed_source = write_checkpoint(tmp_path / "source", shard_size="20kB", seed=1)
    with pytest.raises(RequestError) as caught:
        api.apply(changed_source, plan=tmp_path / "made" / PLAN, out=tmp_path / "out")
    assert f"{changed_source} has changed since" in caught.value.message
    assert "model-00001-of-" in caught.value.message
    assert RECORD in caught.value.hint
    (tmp_path / "made" / RECORD).unlink()
    api.apply(changed_source, plan=tmp_path / "made" / PLAN, out=tmp_path / "out")


def test_a_plan_that_was_not_all_that_a_run_did_is_refused(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "out", tmp_path / "made")
    record = json.loads((tmp_path / "made" / RECORD).read_text())
    record["parameters"]["after"] -= 1000
    record["pipeline"] = "magnitude,drop{layers=1}"
    (tmp_path / "made" / RECORD).write_text(json.dumps(record))
    with pytest.raises(FxpruneError) as caught:
        api.apply(made / "source", plan=tmp_path / "made", out=tmp_path / "out")
    assert "but the run that made it left" in caught.value.message
    assert "drop{layers=1}" in caught.value.hint
    assert not (tmp_path / "out").exists()


def test_a_missing_or_damaged_plan_is_refused(made: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="does not exist"):
        api.apply(made / "source", plan=tmp_path / "none.safetensors", out=tmp_path / "out")
    (tmp_path / "damaged.safetensors").write_bytes((made / "out" / PLAN).read_bytes()[:-8])
    with pytest.raises(RequestError, match="is damaged"):
        api.apply(made / "source", plan=tmp_path / "damaged.safetensors", out=tmp_path / "out")


def test_options_of_passes_have_no_place_beside_a_plan(made: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"--ratio has no effect with --plan alone"):
        api.apply(made / "source", plan=made / "out", ratio=0.5, out=tmp_path / "out")


def test_a_shard_that_the_index_does_not_list_is_missed(made: Path, tmp_path: Path) -> None:
    source = shutil.copytree(made / "source", tmp_path / "source")
    index = json.loads((source / "model.safetensors.index.json").read_text())
    gone = sorted(set(index["weight_map"].values()))[0]
    index["weight_map"] = {name: file for name, file in index["weight_map"].items() if file != gone}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(RequestError) as caught:
        api.apply(source, "magnitude", ratio=0.5, out=tmp_path / "out")
    assert f"{gone} is not listed in model.safetensors.index.json" in caught.value.message
    (source / gone).unlink()
    with pytest.raises(FxpruneError, match="do not fit its config: tensors"):
        api.apply(source, "magnitude", ratio=0.5, out=tmp_path / "out")


def test_an_index_that_sends_a_tensor_to_the_wrong_shard_is_refused(made: Path, tmp_path: Path) -> None:
    source = shutil.copytree(made / "source", tmp_path / "source")
    index = json.loads((source / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    name = next(name for name, file in index["weight_map"].items() if file == files[0])
    index["weight_map"][name] = files[1]
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(RequestError) as caught:
        api.apply(source, "magnitude", ratio=0.5, out=tmp_path / "out")
    assert f"lists {name!r} in {files[1]}, but that file does not hold it" in caught.value.message


def test_a_truncated_shard_is_refused(made: Path, tmp_path: Path) -> None:
    source = shutil.copytree(made / "source", tmp_path / "source")
    shard = sorted(source.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(RequestError, match="is truncated or corrupt"):
        api.apply(source, "magnitude", ratio=0.5, out=tmp_path / "out")
