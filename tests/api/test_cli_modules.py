"""Any module on the command line: package.module:callable, example inputs as text, what comes out, what is refused."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import fxprune
from fxprune.api.modules.prune import prune_module
from fxprune.cli import main
from fxprune.ir.parser import parse_graph
from fxprune.ir.text import print_graph

from ..forks import Forks

PACKAGE = "nets_of_a_user"
SOURCE = '''
import torch
from torch import nn
from torch.nn import functional as F


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.body, self.head = nn.Conv2d(12, 18, 3), nn.Linear(18, 5)

    def forward(self, x):
        return self.head(self.body(F.relu(self.norm(self.stem(x)))).mean((2, 3)))


class Stated(Net):
    """States a width in its code."""

    def forward(self, x):
        return self.head(self.body(F.relu(self.norm(self.stem(x)))).mean((2, 3)).view(-1, 18))


class Block(nn.Module):
    """A shortcut that pads with channels of zeros, where it must."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.padding = (outputs - inputs) // 2
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1)

    def forward(self, x):
        y = self.conv(x)
        if x.shape[1] != y.shape[1]:
            x = F.pad(x, (0, 0, 0, 0, self.padding, self.padding))
        return F.relu(x + y)


class Padded(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 6, 1), nn.Linear(14, 5)
        self.blocks = nn.Sequential(Block(6, 6), Block(6, 14), Block(14, 14))

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class Pair(nn.Module):
    """Two inputs, by name."""

    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(2, 16), nn.Linear(16, 3)

    def forward(self, ids, mask):
        return self.head(self.table(ids) * mask[..., None]).sum(1)


def seeded(kind):
    torch.manual_seed(0)
    return kind()


def net():
    return seeded(Net)


def stated():
    return seeded(Stated)


def padded():
    return seeded(Padded)


def pair():
    return seeded(Pair)


def broken():
    raise ZeroDivisionError("of a user")


def loss(module):
    x = torch.arange(2 * 3 * 8 * 8.0).view(2, 3, 8, 8).sin()
    return F.cross_entropy(module(x), torch.tensor([1, 3]))


def fails(module):
    raise ValueError("no data file")


def ends(module):
    raise SystemExit(3)


def of_batch(module, batch):
    return module(batch).sum()


def vector(module):
    return module(torch.zeros(2, 3, 8, 8))


number = 3
'''
EXAMPLE = ("--example", "float32[2,3,8,8]")
NET = (f"{PACKAGE}:net", *EXAMPLE)


@pytest.fixture(autouse=True)
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """A file of the user's, in the current directory."""
    (tmp_path / f"{PACKAGE}.py").write_text(SOURCE)
    (tmp_path / "exits.py").write_text("raise SystemExit(7)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    importlib.invalidate_caches()
    yield importlib.import_module(PACKAGE)
    sys.modules.pop(PACKAGE)


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Run the program in this process: exit code, stdout, stderr."""
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as stop:
        code = int(stop.code or 0)
    return (code, *capsys.readouterr())


def result(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    """The JSON object that a command prints."""
    code, out, err = run(capsys, *arguments, "--json")
    assert (code, err) == (0, "")
    data: dict[str, Any] = json.loads(out)
    return data


def test_trace_shows_the_groups_of_a_module(capsys: pytest.CaptureFixture[str]) -> None:
    data = result(capsys, "trace", *NET, "--ir")
    assert data["model"] == f"{PACKAGE}:net"
    assert data["parameters"] == 3 * 12 * 9 + 12 + 2 * 12 + 12 * 18 * 9 + 18 + 18 * 5 + 5
    stem = next(g for g in data["groups"] if {"tensor": "stem.weight", "dim": 0}.items() <= g["members"][0].items())
    assert (stem["size"], stem["frozen"]) == (12, None)
    assert {"norm.running_var", "body.weight"} <= {member["tensor"] for member in stem["members"]}
    code, out, _ = run(capsys, "trace", *NET)
    assert code == 0
    assert "Net: 2,417 parameters, 6 operators (" in out
    assert "frozen: input of the model" in out
    code, out, _ = run(capsys, "trace", *NET, "--ir")
    assert (code, out) == (0, data["text"])
    assert out.startswith(print_graph(parse_graph(out)))
    assert "where b=" in out


def test_why_and_dot_work_on_a_module(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    why = result(capsys, "trace", *NET, "--why", "stem.weight", "body.weight", "--dot", tmp_path / "g.dot")["why"]
    (hops,) = why.values()
    assert [hop["operator"] for hop in hops] == [None, "aten.conv2d", "aten.batch_norm", "aten.relu", "aten.conv2d"]
    assert 'label="stem.weight.0" style=filled' in (tmp_path / "g.dot").read_text()


def test_inputs_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    command = (f"{PACKAGE}:pair", "--example", "mask=float32[2,5],ids=int64[2,5]")
    data = result(capsys, "apply", *command, "--pass", "magnitude", "--ratio", "0.25", "--dry-run")
    assert [(group["before"], group["after"]) for group in data["groups"]] == [(16, 12)]


def test_apply_writes_a_program_that_torch_loads(capsys: pytest.CaptureFixture[str], package: ModuleType) -> None:
    out = Path("out")
    data = result(capsys, "apply", *NET, "--pass", "magnitude", "--ratio", "0.5", "--out", out)
    assert (data["form"], data["saved"]["path"], data["saved"]["any_batch"]) == ("module", str(out.resolve()), True)
    assert [step["name"] for step in data["steps"]] == ["couple", "magnitude"]
    assert {(group["before"], group["after"]) for group in data["groups"]} == {(12, 6), (18, 9)}
    held = load_file(out / "model.safetensors")
    assert held["body.weight"].shape == (9, 6, 3, 3)
    assert data["parameters"]["after"] == 3 * 6 * 9 + 6 + 2 * 6 + 6 * 9 * 9 + 9 + 9 * 5 + 5
    x = torch.randn(5, 3, 8, 8)
    program, module = fxprune.load(out), fxprune.load(out, into=package.net()).eval()
    assert type(module) is package.Net
    with torch.no_grad():
        torch.testing.assert_close(program(x), module(x))
    record = json.loads((out / "fxprune.json").read_text())
    assert (record["model"], record["artifact"]) == (f"{PACKAGE}:net", "module")
    assert str(out.resolve().parent) not in json.dumps(record)


def test_a_process_writes_the_rewritten_graph_and_replaces_it(forks: Forks, tmp_path: Path) -> None:
    """From a shell: the current directory is looked in, and the table says which form came out, and why."""
    target = [f"{PACKAGE}:stated", *EXAMPLE, "--pass", "random{seed=1}", "--ratio", "0.5"]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "fxprune.json").write_text('{"fxprune": "0.0.1", "artifact": "module"}')
    command = [sys.executable, "-m", "fxprune", "apply", *target, "--out", "out", "--force"]
    done = forks.run(command, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "random{ratio=0.5,channels=true,seed=1}: 2,417 parameters to" in done.stdout
    assert "rewritten as a graph: the shrunken model does not run: head: RuntimeError: " in done.stdout
    assert "an exported program for any number of samples" in done.stdout
    assert fxprune.load(tmp_path / "out")(torch.zeros(3, 3, 8, 8)).shape == (3, 5)


def test_a_dry_run_writes_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    code, out, err = run(capsys, "apply", *NET, "--pass", "random{ratio=0.5}", "--out", "out", "--dry-run")
    assert (code, err) == (0, "")
    assert "module of the original class\ndry run: nothing was written\n" in out
    assert sorted(tmp_path.iterdir()) == before


def test_scores_of_a_loss_are_those_of_the_call_in_python(
    capsys: pytest.CaptureFixture[str], package: ModuleType
) -> None:
    data = result(
        capsys, "apply", *NET, "--pass", "taylor", "--loss", f"{PACKAGE}:loss", "--ratio", "0.5", "--out", "out"
    )
    same = prune_module(package.net(), torch.zeros(2, 3, 8, 8), "taylor", ratio=0.5, loss=package.loss)
    assert data["pipeline"] == same.options
    held = load_file("out/model.safetensors")
    assert all(torch.equal(held[name], tensor) for name, tensor in same.module.state_dict().items())


def test_layers_and_options_reach_the_passes(capsys: pytest.CaptureFixture[str]) -> None:
    command = ("apply", *NET, "--pass", "random", "--ratio", "0.5", "--seed", "3", "--multiple-of", "4", "--dry-run")
    data = result(capsys, *command)
    assert {group["after"] for group in data["groups"]} == {8, 12}
    assert "layers=none" in data["pipeline"]
    assert "seed=3" in data["pipeline"]
    code, _, err = run(capsys, *command, "--layers", "0:1")
    assert (code, "layers=0:1 chooses nothing: no group here lies in a numbered layer" in err) == (2, True)


def test_a_shortcut_that_pads_is_repaired_in_place(package: ModuleType) -> None:
    """The padding is a width of the block that reads it; in the others, where nothing is padded, it is 0."""
    pruned = prune_module(package.padded(), torch.randn(2, 3, 8, 8), "random", ratio=0.5)
    assert pruned.in_place
    assert [block.padding for block in pruned.module.blocks] == [0, 2, 0]


def test_a_single_sample_is_said_to_fix_the_batch(capsys: pytest.CaptureFixture[str]) -> None:
    command = ("apply", f"{PACKAGE}:net", "--example", "float32[1,3,8,8]", "--pass", "random{ratio=0.5}", "--dry-run")
    _, out, _ = run(capsys, *command)
    assert "accepts only the number of samples in the example: the example holds a single sample" in out
    groups = result(capsys, "trace", f"{PACKAGE}:net", "--example", "float32[1,3,8,8]")["groups"]
    assert any(group["frozen"] is None for group in groups)


TARGET = " --example float32[2,3,8,8]"
RANDOM = " --pass random --ratio 0.5"
BAD_REQUESTS: list[tuple[str, str, str]] = [
    ("trace NETS:net", "missing --example INPUTS for NETS:net", "--example 'float32[2,3,224,224]'"),
    ("trace demo --example float32[2]", "--example has no effect on a causal", "leave --example out"),
    ("trace . --example float32[2]", "has no config.json", "Hugging Face model directory"),
    (f"trace NETS:net{TARGET} --trust-remote-code", "--trust-remote-code: only for Hugging Face models", "leave it"),
    ("trace NETS:net --example float32(2)", "cannot be read: unexpected 'float32(2)'", "float32[2,3,224,224]"),
    ("trace NETS:net --example real[2]", "'real' is not a torch dtype", "float32[2,3,224,224]"),
    ("trace NETS:net --example x=float32[2],int64[2]", "has names for some inputs only", "float32[2,3,224,224]"),
    (f"trace NETS:net{TARGET},float32[2]", "do not fit Net.forward", "give one tensor"),
    (f"trace NETS:net{TARGET} --why stem.wait x", "has no parameter 'stem.wait'", "stem.weight"),
    (f"trace nowhere.at.all:net{TARGET}", "'nowhere.at.all' cannot be imported: ModuleNotFoundError", "directory"),
    (f"trace exits:net{TARGET}", "'exits' cannot be imported: SystemExit: 7", "directory that holds the package"),
    (f"trace NETS:nothing{TARGET}", "'NETS' has no 'nothing'", "function or class"),
    (f"trace NETS:broken{TARGET}", "NETS:broken() fails: ZeroDivisionError: of a user", "without arguments"),
    (f"trace NETS:seeded{TARGET}", "NETS:seeded() fails: TypeError", "without arguments"),
    (f"trace NETS:number{TARGET}", "NETS:number is not a torch.nn.Module but int", "give what builds"),
    (f"trace NETS:torch.zeros_like{TARGET}", "NETS:torch.zeros_like() fails: TypeError", "without arguments"),
    (f"apply NETS:net{TARGET} --out out", "missing --pass PIPELINE", "--pass magnitude"),
    (f"apply NETS:net{TARGET}{RANDOM}", "missing --out DIR", "--dry-run"),
    (f"apply NETS:net{TARGET}{RANDOM} --out .", "already exists", "--force"),
    (f"apply NETS:net{TARGET}{RANDOM} --out . --force", "contains the directory that this", "from another"),
    (f"apply NETS:net{TARGET} --pass randem --out out", "unknown pass 'randem'", "did you mean 'random'"),
    (f"apply NETS:net{TARGET} --pass magnitude --seed 1 --out out", "has an option 'seed'", ""),
    (f"apply NETS:net{TARGET} --pass random --ratio 2 --out out", "random: ratio=2 is outside [0, 1)", "a quarter"),
    (f"apply NETS:net{TARGET} --pass lora --out out", "lora has no data to train on", "give --data FILE.npz"),
    (f"apply NETS:net{TARGET} --pass taylor --out out", "taylor scores need a loss or cal", "--loss package.module:"),
    (f"apply NETS:net{TARGET} --pass wanda --out out", "wanda scores need a loss or cal", "--loss package.module:"),
    (f"apply NETS:net{TARGET}{RANDOM} --loss f --out out", "'f' is not of the form package.module", "package.module:"),
    (f"apply NETS:net{TARGET}{RANDOM} --loss NETS:number --out out", "NETS:number is not a function but int", "func"),
    (f"apply NETS:net{TARGET} --pass taylor --loss NETS:vector --out out", "not a scalar tensor but of shape", ""),
    (f"apply NETS:net{TARGET} --pass taylor --loss NETS:fails --out out", "data file (NETS.py, line ", "takes"),
    (f"apply NETS:net{TARGET} --pass taylor --loss NETS:ends --out out", "NETS:ends fails: SystemExit: 3", "takes the"),
    (f"apply NETS:net{TARGET} --pass taylor --loss NETS:of_batch --out out", "missing 1 required", "takes the module"),
    (f"apply NETS:net{TARGET}{RANDOM} --out NETS.py", "NETS.py is a file, not a directory", "choose another --out"),
    ("export NETS:net --out out", "'NETS:net' names an object of Python, and this command", "save what apply makes"),
    ("bench NETS:net", "'NETS:net' names an object of Python, and this command", "save what apply makes"),
    ("apply NETS.py --pass random --out out", "is a file, not a model directory", "such as NETS:build"),
    ("apply demo --pass taylor --loss NETS:loss --dry-run", "--loss has no effect on a causal", "--calib"),
    *(
        (f"apply NETS:net{TARGET}{RANDOM} --out out {option}", f"{option.split()[0]}: only for Hugging Face models", "")
        for option in (
            "--plan exits.py", "--form free", "--allow-pickle",
            "--trust-remote-code", "--print-ir-after all",
        )
    ),
]  # fmt: skip


@pytest.mark.parametrize(("command", "message", "hint"), BAD_REQUESTS, ids=[row[0] for row in BAD_REQUESTS])
def test_a_bad_request_exits_with_2(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, command: str, message: str, hint: str
) -> None:
    before = sorted(tmp_path.iterdir())
    code, out, err = run(capsys, *command.replace("NETS", PACKAGE).split())
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert message.replace("NETS", PACKAGE) in err
    assert hint.replace("NETS", PACKAGE) in err.partition("\nhint: ")[2]
    assert "Traceback" not in err
    assert sorted(tmp_path.iterdir()) == before


def test_inputs_that_do_not_run_are_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "trace", f"{PACKAGE}:net", "--example", "float32[2,4,8,8]")
    assert (code, out) == (1, "")
    assert "Net does not run on the example inputs: RuntimeError" in err
    assert "\nhint: give example inputs that the module's forward accepts" in err
