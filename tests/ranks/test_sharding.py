"""Recovery with FSDP: the Trainer shards the model among processes, and what comes out is what one process gives."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from fxprune import api
from fxprune.backends.huggingface import weight_source
from fxprune.ir.errors import RequestError
from fxprune.passes.recover.sharding import whole_again
from fxprune.passes.recover.trainer import _require_way_back

from ..checkpoints import contents, write_checkpoint
from ..corpora import word_tokenizer
from .test_torchrun import VOCABULARY, environment, free_port

# accelerate shards on accelerators only. Told otherwise, it does so on CPUs too.
SHARDED = """
import contextlib, json, sys
import torch
torch.set_num_threads(1)
import accelerate.state
from accelerate.utils import DistributedType
begin = accelerate.state.AcceleratorState.__init__

def with_shards(self, *arguments, **how):
    begin(self, *arguments, **how)
    if how.get("fsdp_plugin") is not None:
        self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, how["fsdp_plugin"]

accelerate.state.AcceleratorState.__init__ = with_shards
import fxprune
from fxprune.backends.huggingface import save, weight_source
from fxprune.passes.recover import sharding, trainer
save.FreshProcess, weight_source.verify_written = contextlib.nullcontext, lambda *_: {}
seen = []
sharded = sharding.is_sharded
sharding.is_sharded = lambda model: seen.append(sharded(model)) or seen[-1]
done = fxprune.apply(**json.loads(sys.argv[1]))
print(json.dumps({"sharded": seen, "loss": [entry["loss"] for entry in done.report.values() if "loss" in entry]}))
"""
FSDP = {
    "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "LlamaDecoderLayer",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("recovery", ["finetune{", "lora{dropout=0.0,", "distill{teacher=1,"])
def test_a_sharded_training_gives_what_one_process_gives(
    recovery: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weight_source, "verify_written", lambda *_: {})
    source = write_checkpoint(tmp_path / "source", dtype=torch.float32)
    word_tokenizer(VOCABULARY).save_pretrained(source)
    text = tmp_path / "text.txt"
    text.write_text(" ".join(list(VOCABULARY)[i * i % 26] for i in range(400)), encoding="utf-8")
    passes = f"random,{recovery}steps=2,batch=4,micro_batch=2,length=8,lr=1e-3}},wanda{{samples=4,length=8}}"
    job = {"model": str(source), "passes": passes, "ratio": 0.5, "data": str(text), "calib": str(text)}
    one = api.apply(**job, out=str(tmp_path / "one"))
    port = free_port()
    both = [
        subprocess.Popen(
            [sys.executable, "-c", SHARDED, json.dumps({**job, "out": str(tmp_path / "two")})],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**environment(rank, port), **FSDP},
        )
        for rank in (0, 1)
    ]  # fmt: skip
    answers = [process.communicate(timeout=280) for process in both]
    for out, err in answers:
        assert out, err
        found = json.loads(out.splitlines()[-1])
        assert found["sharded"] == [True], "the model was sharded when the training ended"
        losses = [entry["loss"] for entry in one.report.values() if "loss" in entry]
        assert found["loss"] == [pytest.approx(wanted, rel=1e-4) for wanted in losses]
    assert contents(tmp_path / "one").keys() == contents(tmp_path / "two").keys()
    wanted, trained = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    for name, tensor in wanted.items():
        torch.testing.assert_close(trained[name], tensor, rtol=1e-4, atol=1e-6, msg=name)


class Halves(nn.Linear):
    """What a sharding makes of a class."""


class Shard(nn.Parameter):
    """A distributed parameter that gives its whole value."""

    def full_tensor(self) -> torch.Tensor:
        return self.detach() + 1


def shard(model: nn.Module) -> None:
    layer: Any = model[0]  # type: ignore[index]
    layer.__class__ = Halves
    layer.weight = Shard(layer.weight.detach().double() * 2)
    layer.register_forward_hook(lambda *_: 1 / 0)
    layer.sharded_state = object()


def test_a_sharded_model_is_plain_again_with_the_values_of_all_shards() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    parameters, value = dict(model.named_parameters()), model[0].weight.detach().clone()
    with whole_again(model):
        shard(model)
    assert type(model[0]) is nn.Linear
    assert not hasattr(model[0], "sharded_state")
    assert all(parameters[name] is parameter for name, parameter in model.named_parameters())
    torch.testing.assert_close(model[0].weight.detach(), value * 2 + 1)
    assert model(torch.ones(1, 3)).shape == (1, 1), "the hook is gone"


def shard_and_fail(model: nn.Module) -> None:
    with whole_again(model):
        shard(model)
        raise KeyError


def test_after_an_error_nothing_is_gathered() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    weight = model[0].weight
    with pytest.raises(KeyError):
        shard_and_fail(model)
    assert (type(model[0]), model[0].weight) == (nn.Linear, weight)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"is_deepspeed_enabled": True}, "accelerate is set to DeepSpeed"),
        ({"is_fsdp_enabled": True, "version": 1}, "accelerate is set to FSDP version 1"),
        ({"is_fsdp_enabled": True, "version": 2}, ""),
        ({}, ""),
    ],
)
def test_ways_to_share_out_a_model_from_which_there_is_no_way_back(settings: dict[str, Any], message: str) -> None:
    plugin = SimpleNamespace(fsdp_version=settings.pop("version", 2))
    given: Any = SimpleNamespace(
        **{"is_deepspeed_enabled": False, "is_fsdp_enabled": False, **settings},
        accelerator=SimpleNamespace(state=SimpleNamespace(fsdp_plugin=plugin)),
    )
    if not message:
        assert _require_way_back(given) is None  # type: ignore[func-returns-value]
        return
    with pytest.raises(RequestError, match=message) as caught:
        _require_way_back(given)
    assert "fsdp_version: 2" in caught.value.hint
