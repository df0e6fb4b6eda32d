"""Loading a pruned module runs nothing of its directory: no pickle, no expression, no library."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.api.modules.prune import Pruned, prune_module
from fxprune.backends.pt2.archive import MODEL, SAMPLES
from fxprune.ir.errors import FxpruneError, RequestError

from ..nets import build, images

PROGRAM = "model.pt2"
WEIGHTS = "data/weights/model_weights_config.json"


class Bomb:
    """A pickle that leaves a file when it is loaded."""

    def __init__(self, ran: Path) -> None:
        self.ran = ran

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.ran, "it ran")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Pruned, Path]:
    result = prune_module(build("depthwise"), images(), "magnitude", ratio=0.5)
    out = tmp_path_factory.mktemp("module") / "out"
    result.save(out)
    return result, out


@pytest.fixture
def change(made: tuple[Pruned, Path], tmp_path: Path) -> Callable[..., Path]:
    """Copies the artifact with members of its archive changed, added, or given as functions of their JSON."""

    def changed(members: dict[str, Any]) -> Path:
        folder = tmp_path / "copy"
        folder.mkdir()
        for path in made[1].iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
        with zipfile.ZipFile(made[1] / PROGRAM) as old, zipfile.ZipFile(folder / PROGRAM, "w") as new:
            root = old.namelist()[0].partition("/")[0]
            held = {name.removeprefix(f"{root}/"): old.read(name) for name in old.namelist()}
            for name, value in members.items():
                held[name] = json.dumps(value(json.loads(held[name]))).encode() if callable(value) else value
            for name, data in held.items():
                new.writestr(f"{root}/{name}", data)
        return folder

    return changed


def pickled(ran: Path) -> bytes:
    data = io.BytesIO()
    torch.save(Bomb(ran), data)
    return data.getvalue()


def with_weight_as_pickle(config: dict[str, Any]) -> dict[str, Any]:
    name = next(iter(config["config"]))
    config["config"][name] |= {"use_pickle": True}
    return config


PARTS: dict[str, tuple[Callable[[Path], dict[str, Any]], str]] = {
    "sample inputs": (lambda ran: {SAMPLES: pickled(ran)}, "data/sample_inputs/model.pt"),
    "legacy weights": (lambda ran: {"data/weights/model.pt": pickled(ran)}, "data/weights/model.pt"),
    "weight": (
        lambda ran: {"data/weights/weight_0": pickled(ran), WEIGHTS: with_weight_as_pickle},
        "data/weights/weight_0",
    ),
    "legacy constants": (lambda ran: {"data/constants/model.pt": pickled(ran)}, "data/constants/model.pt"),
    "custom object": (lambda ran: {"data/constants/custom_obj_0": pickled(ran)}, "custom_obj_0"),
    "opaque object": (lambda ran: {"data/constants/opaque_obj_0": pickle.dumps(Bomb(ran))}, "opaque_obj_0"),
    "library": (lambda _ran: {"data/aotinductor/model/model.so": b"\x7fELF"}, "model.so"),
    "another model": (lambda _ran: {"models/other.json": b"{}"}, "models/other.json"),
    "executorch": (lambda _ran: {"data/executorch/model.pte": b"x"}, "model.pte"),
}


@pytest.mark.parametrize("name", PARTS)
def test_what_may_run_is_refused_by_name(name: str, change: Callable[..., Path], tmp_path: Path) -> None:
    members, said = PARTS[name]
    with pytest.raises(RequestError) as caught:
        fxprune.load(change(members(tmp_path / "ran")))
    assert said in caught.value.message
    assert "allow_pickle=True" in caught.value.hint
    assert not (tmp_path / "ran").exists()


def test_what_is_allowed_is_read(change: Callable[..., Path], tmp_path: Path, made: tuple[Pruned, Path]) -> None:
    """And runs: so the test above would see it."""
    module = fxprune.load(made[1], allow_pickle=True)
    with torch.no_grad():
        assert torch.equal(module(images(5)), made[0].module(images(5)))
    bad = change({SAMPLES: pickled(tmp_path / "ran")})
    with pytest.raises(RequestError, match="is damaged"):
        fxprune.load(bad, allow_pickle=True)
    assert (tmp_path / "ran").exists()


def edit(change_node: Callable[[dict[str, Any]], object]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A function of the JSON of a program that changes the graph."""

    def edited(program: dict[str, Any]) -> dict[str, Any]:
        change_node(program["graph_module"])
        return program

    return edited


def retarget(target: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return edit(lambda module: module["graph"]["nodes"][-1].update(target=target))


def rename_argument(module: dict[str, Any]) -> None:
    node = module["graph"]["nodes"][-1]
    node["inputs"][-1] |= {"kind": 2, "name": "x=print(1), y"}


def nested(kind: str, context: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    spec = json.dumps([1, {"type": kind, "context": context, "children_spec": []}])
    return edit(lambda module: module["module_call_graph"][0]["signature"].update(out_spec=spec))


def hold(name: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def held(module: dict[str, Any]) -> None:
        spec = next(spec["parameter"] for spec in module["signature"]["input_specs"] if "parameter" in spec)
        spec["parameter_name"] = name

    return edit(held)


BAD_GRAPHS: dict[str, tuple[Callable[[dict[str, Any]], dict[str, Any]], str]] = {
    "a function of torch": (retarget("torch.load"), "calls 'torch.load'"),
    "a function of a module of torch": (retarget("torch.os.system"), "calls 'torch.os.system'"),
    "an operator that is none": (retarget("torch.ops.aten.save.default"), "aten.save.default"),
    "an operator that opens files": (retarget("torch.ops.aten.from_file.default"), "which opens files"),
    "an operator of another library": (retarget("torch.ops.evil.run.default"), "no operator of aten"),
    "an extension": (retarget("#evil:run"), "calls '#evil:run'"),
    "a Python function": (retarget("_operator.attrgetter"), "calls '_operator.attrgetter'"),
    "an argument that is code": (edit(rename_argument), "has no argument"),
    "a kind of output": (nested("evil.Kind", "null"), "returns a evil.Kind"),
    "a factory": (nested("collections.defaultdict", '{"default_factory_module": "evil"}'), "defaultdict"),
    "a keyword": (nested("builtins.dict", '[{"__enum__": true, "fqn": "evil:x"}]'), "returns a builtins.dict"),
    "a name that is code": (hold('a", print(1), "'), "is damaged"),
    "a name of the class": (hold("__class__"), "is damaged"),
    "an input that is code": (
        edit(lambda module: module["module_call_graph"][0]["signature"].update(forward_arg_names=["x=print(1)"])),
        "an input is called",
    ),
    "no graph": (lambda _program: {}, "is damaged"),
}


@pytest.mark.parametrize("name", BAD_GRAPHS)
def test_a_graph_calls_operators_only(name: str, change: Callable[..., Path]) -> None:
    edited, said = BAD_GRAPHS[name]
    with pytest.raises(RequestError) as caught:
        fxprune.load(change({MODEL: edited}))
    assert said in caught.value.message
    assert caught.value.hint


def test_expressions_and_guards_are_not_evaluated(
    change: Callable[..., Path], tmp_path: Path, made: tuple[Pruned, Path]
) -> None:
    """``torch.export.load`` gives both to ``eval``: they are not even read."""
    code = f"__import__('pathlib').Path({str(tmp_path / 'ran')!r}).write_text('it ran')"

    def planted(program: dict[str, Any]) -> dict[str, Any]:
        program["guards_code"] = [code]
        values = program["graph_module"]["graph"]["tensor_values"]
        sizes = [size for value in values.values() for size in value["sizes"] if "as_expr" in size]
        assert sizes
        for size in sizes:
            size["as_expr"]["expr_str"] = code
        return program

    folder = change({MODEL: planted})
    with torch.no_grad():
        assert torch.equal(fxprune.load(folder)(images(5)), made[0].module(images(5)))
    assert not (tmp_path / "ran").exists()


class Rich(nn.Module):
    """Nested outputs, two inputs, a buffer that is no parameter, splits, and an extent that is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(6, 12), nn.Linear(12, 4)
        self.register_buffer("scale", torch.arange(1.0, 5.0), persistent=False)

    def forward(self, x: Tensor, shift: Tensor) -> dict[str, Any]:
        found = self.outer(torch.relu(self.inner(x))) * self.scale
        first, second = (found + shift).view(x.shape[0], 2, 2).split(1, dim=1)
        best = found.max(dim=1)
        return {"halves": (first, [second]), "best": best.values, "where": best.indices, "none": None}


def test_a_rich_program_comes_back(tmp_path: Path) -> None:
    result = prune_module(Rich(), (torch.randn(3, 6), torch.randn(3, 4)), "magnitude", ratio=0.5)
    assert not result.fixed_batch
    result.save(tmp_path / "out")
    record = json.loads((tmp_path / "out" / "fxprune.json").read_text())
    assert record["loads_without_pickle"] is True
    loaded = fxprune.load(tmp_path / "out")
    given = {"shift": torch.randn(5, 4), "x": torch.randn(5, 6)}
    with torch.no_grad():
        found, expected = loaded(**given), result.module(**given)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert not {name for name, _ in loaded.named_parameters()} ^ {name for name, _ in result.module.named_parameters()}
    with pytest.raises(RuntimeError, match=r"takes an input of shape \[any, 6\], not \[5, 7\]"):
        loaded(x=torch.randn(5, 7), shift=torch.randn(5, 4))


def test_a_repair_in_the_record_changes_integers_only(change: Callable[..., Path]) -> None:
    folder = change({})
    record = json.loads((folder / "fxprune.json").read_text())
    for attribute, new in (("forward", 1), ("__class__", 1), ("training", "yes"), ("nothing", 3), ("_modules", [1])):
        spoilt = {**record, "repairs": {"": {attribute: [0, new]}}}
        (folder / "fxprune.json").write_text(json.dumps(spoilt))
        with pytest.raises(FxpruneError):
            fxprune.load(folder, into=build("depthwise"))
