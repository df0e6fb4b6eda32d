"""The directory of a pruned module: what is in it, that torch alone runs it, and loading it back."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import fxprune
from fxprune.api.modules.prune import Pruned, prune_module
from fxprune.backends.pt2 import save
from fxprune.backends.verify import VerificationError
from fxprune.ir.errors import FxpruneError, RequestError

from ...checkpoints import LLAMA, write_checkpoint
from ...nets import Depthwise, build, images


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Pruned, Path]:
    result = prune_module(build("depthwise"), images(), "magnitude", ratio=0.5)
    out = tmp_path_factory.mktemp("module") / "out"
    saved = result.save(out)
    assert saved.path == out.resolve()
    assert saved.any_batch
    return result, out


@pytest.fixture(scope="module")
def rewritten(tmp_path_factory: pytest.TempPathFactory) -> tuple[Pruned, Path]:
    result = prune_module(build("hard-coded width"), images(), "magnitude", ratio=0.5)
    out = tmp_path_factory.mktemp("graph") / "out"
    result.save(out)
    return result, out


def test_the_directory_is_complete(written: tuple[Pruned, Path]) -> None:
    result, out = written
    assert {path.name for path in out.iterdir()} == {
        "model.safetensors", "model.pt2", "fxprune.plan", "fxprune.json",
    }  # fmt: skip
    record = json.loads((out / "fxprune.json").read_text())
    assert record["artifact"] == "module"
    assert record["form"] == "module"
    assert record["macs"]["after"] == result.macs[1] < record["macs"]["before"]
    assert record["repairs"]["blocks.0.depthwise.0"]["groups"] == [20, 10]
    assert record["checks"]["worst_difference"] <= record["checks"]["tolerance"]
    assert set(record["files"]) == {"model.safetensors", "model.pt2", "fxprune.plan"}
    assert [path.name for path in out.glob("*.safetensors")] == ["model.safetensors"]  # runtimes take all for weights
    assert str(Path.home()) not in (out / "model.pt2").read_bytes().decode("latin-1")
    assert str(Path(__file__).parent) not in (out / "model.pt2").read_bytes().decode("latin-1")


def test_the_weights_are_the_originals_slices(written: tuple[Pruned, Path]) -> None:
    result, out = written
    source = build("depthwise").state_dict()
    assert result.plan.slices
    for (name, dim), kept in result.plan.slices.items():
        source[name] = source[name].index_select(dim, torch.from_numpy(kept))
    held = load_file(out / "model.safetensors")
    assert held.keys() == source.keys()
    assert all(torch.equal(held[name], source[name]) for name in held)


@pytest.mark.parametrize("which", ["written", "rewritten"])
def test_the_program_comes_back(which: str, request: pytest.FixtureRequest) -> None:
    result, out = request.getfixturevalue(which)
    with torch.no_grad():
        assert torch.equal(fxprune.load(out)(images(5)), result.module(images(5)))


def test_the_class_comes_back(written: tuple[Pruned, Path]) -> None:
    result, out = written
    loaded = fxprune.load(out, into=build("depthwise", seed=9))
    assert isinstance(loaded, Depthwise)
    with torch.no_grad():
        assert torch.equal(loaded(images(5)), result.module(images(5)))


@pytest.mark.usefixtures("real_processes")
def test_tied_weights_are_stored_once(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.inner, self.outer = nn.Embedding(11, 6), nn.Linear(6, 9), nn.Linear(9, 6)
            self.head = nn.Linear(6, 11, bias=False)
            self.head.weight = self.table.weight

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.outer(torch.tanh(self.inner(self.table(ids)))))

    result = prune_module(Tied(), torch.randint(0, 11, (2, 5)), "magnitude", ratio=0.3)
    result.save(tmp_path / "out")
    assert len(load_file(tmp_path / "out" / "model.safetensors")) == 5
    loaded = fxprune.load(tmp_path / "out", into=Tied())
    assert loaded.head.weight is loaded.table.weight
    ids = torch.randint(0, 11, (3, 5))
    with torch.no_grad():
        assert torch.equal(loaded(ids), result.module(ids))


def test_a_fixed_batch_is_written_and_said(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Flatten(0), nn.Linear(12, 8), nn.Linear(8, 2))
    result = prune_module(net, torch.randn(2, 6), "magnitude", ratio=0.5)
    saved = result.save(tmp_path / "out")
    assert result.fixed_batch
    assert not saved.any_batch
    assert json.loads((tmp_path / "out" / "fxprune.json").read_text())["any_batch"] is False


def test_what_was_trained_since_is_written(tmp_path: Path) -> None:
    result = prune_module(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)), torch.randn(2, 4), "magnitude", ratio=0.5)
    with torch.no_grad():
        result.module[0].bias += 1
    result.save(tmp_path / "out")
    with torch.no_grad():
        assert torch.equal(fxprune.load(tmp_path / "out")(torch.ones(3, 4)), result.module(torch.ones(3, 4)))


def test_a_program_that_differs_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = prune_module(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)), torch.randn(2, 4), "magnitude", ratio=0.5)
    export = save._exported

    def wrong(product: save.SavableModule, *, free: bool) -> Any:
        program = export(replace(product, module=copy.deepcopy(product.module)), free=free)
        program.state_dict["0.bias"].data += 1
        return program

    monkeypatch.setattr(save, "_exported", wrong)
    with pytest.raises(VerificationError, match="outputs of the written program and of the module differ by"):
        result.save(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def damaged(tmp_path: Path, out: Path, name: str) -> Path:
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in out.iterdir():
        (copy / path.name).write_bytes(path.read_bytes() if path.name != name else b"nothing")
    return copy


@dataclass
class Places:
    """An empty directory, an artifact with a module of its own class, and one with a rewritten graph."""

    tmp: Path
    out: Path
    graph: Path


REFUSED: dict[str, tuple[Callable[[Places], Any], str]] = {
    "absent": (lambda at: fxprune.load(at.tmp / "absent"), "does not exist"),
    "no artifact": (lambda at: fxprune.load(at.tmp), "fxprune.json does not exist"),
    "program": (lambda at: fxprune.load(damaged(at.tmp, at.out, "model.pt2")), "model.pt2 is damaged"),
    "weights": (
        lambda at: fxprune.load(damaged(at.tmp, at.out, "model.safetensors"), into=build("depthwise")),
        "model.safetensors is damaged",
    ),
    "another class": (
        lambda at: fxprune.load(at.out, into=build("plain")),
        "Plain does not fit the plan of",
    ),
    "a smaller one": (
        lambda at: fxprune.load(at.out, into=fxprune.load(at.out, into=build("depthwise"))),
        "is missing or too small",
    ),
    "a class": (lambda at: fxprune.load(at.out, into=type(build("plain"))), "into is the class Plain"),
    "no module": (lambda at: fxprune.load(at.out, into=object()), "into is of type object"),
    "more in it": (
        lambda at: fxprune.load(at.out, into=_with_more(build("depthwise"))),
        "Depthwise does not fit",
    ),
    "a graph": (lambda at: fxprune.load(at.graph, into=build("hard-coded width")), "a rewritten graph"),
    "exists": (
        lambda at: prune_module(build("plain"), images(), "magnitude", ratio=0).save(at.out),
        "already exists",
    ),
}


def _with_more(net: nn.Module) -> nn.Module:
    net.more = nn.Linear(2, 2)
    return net


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(
    name: str, tmp_path: Path, written: tuple[Pruned, Path], rewritten: tuple[Pruned, Path]
) -> None:
    call, message = REFUSED[name]
    with pytest.raises(FxpruneError) as caught:
        call(Places(tmp_path, written[1], rewritten[1]))
    assert message in caught.value.message
    assert caught.value.hint


def fails(*_arguments: object, **_options: object) -> None:
    raise ValueError("no such operator\nand more")


@pytest.mark.parametrize(
    ("place", "name", "replacement", "message"),
    [
        (torch.export, "export", fails, "torch.export cannot export the pruned module: no such operator"),
        (
            save,
            "start_python",
            lambda *_: nullcontext(
                SimpleNamespace(
                    returncode=1,
                    communicate=lambda: ("", "...\nRuntimeError: no such kernel\n"),
                    kill=lambda: None,
                )
            ),
            "a fresh Python process cannot run the written program: RuntimeError: no such kernel",
        ),
        (save, "load_file", lambda _path: {}, "the written program returns 0 tensors, the module 1"),
    ],
    ids=["export", "run", "outputs"],
)
def test_a_program_that_is_not_the_module_is_not_written(
    place: Any, name: str, replacement: Any, message: str, *, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = prune_module(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)), torch.randn(2, 4), "magnitude", ratio=0.5)
    monkeypatch.setattr(place, name, replacement)
    with pytest.raises(FxpruneError) as caught:
        result.save(tmp_path / "out")
    assert caught.value.message == message
    assert caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_a_hugging_face_artifact_is_loaded_by_its_own_backend(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model")
    assert fxprune.load(folder).config.hidden_size == LLAMA.hidden_size
    with pytest.raises(RequestError, match="into= has no effect"):
        fxprune.load(folder, into=nn.Linear(2, 2))


def test_a_record_of_something_else_is_no_module(tmp_path: Path) -> None:
    save_file({"x": torch.ones(1)}, tmp_path / "model.safetensors")
    (tmp_path / "fxprune.json").write_text("{}")
    with pytest.raises(RequestError, match="is not the artifact of a pruned module"):
        fxprune.load(tmp_path)


class SequenceFirst(nn.Module):
    """The first dimension is of steps, and torch unrolls a recurrent layer step by step."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.layer, self.head = getattr(nn, kind)(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x)[0])


@pytest.mark.parametrize(
    "kind", ["GRU", pytest.param("LSTM", marks=pytest.mark.slow), pytest.param("RNN", marks=pytest.mark.slow)]
)
def test_what_torch_cannot_free_is_written_for_the_example(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    example = torch.randn(3, 2, 6)
    result = prune_module(SequenceFirst(kind), example, "magnitude", ratio=0.5)
    saved = result.save(tmp_path / "out")
    assert not saved.any_batch
    assert not vars(example)  # no marks of torch on a tensor of the user
    loaded = fxprune.load(tmp_path / "out")
    with torch.no_grad():
        assert torch.equal(loaded(example), result.module(example))
        assert result.module(torch.randn(7, 2, 6)).shape == (7, 2, 3)  # the module itself is free
