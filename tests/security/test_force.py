"""``--force`` removes models, and nothing else that a user may have in a directory."""

from __future__ import annotations

import json
import os
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch

from fxprune import api
from fxprune.backends import replaceable
from fxprune.backends.artifact import write_json
from fxprune.backends.atomic_directory import atomic_directory, check_target
from fxprune.backends.huggingface import weight_source
from fxprune.cli import main
from fxprune.ir.errors import RequestError

from ..checkpoints import contents, write_checkpoint

CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
EMPTY = sha256().hexdigest()
OURS = {"versions": {"fxprune": "0.1.0"}, "files": {"config.json": "0" * 64}}

Files = dict[str, Any]


def listing(files: Any) -> dict[str, Any]:
    """A ``fxprune.json`` that lists files."""
    return {"versions": {"fxprune": "0.1.0"}, "files": files}


def directory(folder: Path, files: Files) -> Path:
    """A directory with files: JSON data, or empty; a name that ends with a slash is a directory."""
    folder.mkdir(parents=True)
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            path.mkdir()
        elif data is None:
            path.touch()
        else:
            path.write_text(json.dumps(data))
    return folder


FOREIGN: dict[str, tuple[Files, str]] = {
    "a web project": ({"config.json": {"port": 80}, "package.json": {}, "src/index.js": None}, "package.json"),
    "a config.json of something else": ({"config.json": {"port": 80}}, "contains files, but no model"),
    "a config.json that is no JSON": ({"config.json": None}, "contains files, but no model"),
    "notes in a model": ({"config.json": CONFIG, "notes.txt": None, "model.safetensors": None}, "notes.txt"),
    "notes in an artifact": ({"config.json": CONFIG, "fxprune.json": OURS, "notes.txt": None}, "notes.txt"),
    "results in an artifact": ({"fxprune.json": OURS, "results/run1.json": None}, "results/"),
    "a file among the adapters": (
        {"fxprune.json": OURS, "adapter/adapter_config.json": None, "adapter/eval.csv": None},
        "adapter/eval.csv",
    ),
    "the history of a clone": ({"config.json": CONFIG, "model.safetensors": None, ".git/HEAD": None}, ".git/"),
    "an empty directory in a model": ({"config.json": CONFIG, "drafts/": None}, "drafts/"),
    "weights of another kind": ({"config.json": CONFIG, "my_lora.safetensors": None}, "my_lora.safetensors"),
    "a fxprune.json of another program": (
        {"config.json": CONFIG, "fxprune.json": {"files": ["plot.py"]}, "plot.py": None},
        "fxprune.json",
    ),
    "a thesis that a stranger lists": (
        {"config.json": CONFIG, "fxprune.json": listing(["thesis.tex"]), "thesis.tex": "mine"},
        "thesis.tex",
    ),
    "a thesis that a stranger lists with a digest": (
        {"config.json": CONFIG, "fxprune.json": listing({"thesis.tex": "0" * 64}), "thesis.tex": "mine"},
        "thesis.tex",
    ),
    "a thesis that a stranger calls a file of a model": (
        {"config.json": CONFIG, "fxprune.json": listing({"thesis.tex": None}), "thesis.tex": "mine"},
        "thesis.tex",
    ),
    "notes in a folder that a stranger lists": (
        {"config.json": CONFIG, "fxprune.json": listing({"notes/a.json": "0" * 64}), "notes/README.md": "mine"},
        "notes/README.md",
    ),
    "a stage that is none": ({"config.json": CONFIG, "fxprune.json": OURS, "stage.safetensors": None}, "stage.safet"),
    "a licence alone": ({"LICENSE": None, "README.md": None}, "contains files, but no model"),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_what_is_no_model_stays(tmp_path: Path, case: str) -> None:
    files, named = FOREIGN[case]
    out = directory(tmp_path / "out", files)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(RequestError) as caught, atomic_directory(out, force=True):
        pytest.fail("work was begun")
    assert named in caught.value.message
    assert "another --out" in caught.value.hint
    assert sorted(tmp_path.rglob("*")) == before


MODELS: dict[str, Files] = {
    "nothing": {},
    "a model": {"config.json": CONFIG, "model-00001-of-00002.safetensors": None, "model.safetensors.index.json": {}},
    "a download": {"config.json": CONFIG, "README.md": None, ".gitattributes": None, "pytorch_model.bin": None},
    "an artifact": {"config.json": CONFIG, "fxprune.json": OURS, "plan.safetensors": None, "merges.txt": None},
    "an artifact with an adapter": {
        "fxprune.json": OURS, "adapter/adapter_config.json": None, "adapter/adapter_model.safetensors": None,
    },
    "an artifact with a file of another name": {
        "config.json": CONFIG, "bpe.codes": "x", "fxprune.json": listing({"bpe.codes": sha256(b'"x"').hexdigest()}),
    },
    "an ONNX graph of before": {
        "config.json": CONFIG, "fxprune.json": {"format": "onnx", "versions": {"fxprune": "0.1.0"}},
        "model.onnx": None, "model.onnx.data": None, "genai_config.json": None, "tokenizer.json": None,
    },
    "an ONNX graph for browsers": {
        "config.json": CONFIG, "fxprune.json": {"format": "onnx", "files": ["onnx/model_q4.onnx"]},
        "onnx/model_q4.onnx": None, "onnx/model_q4.onnx_data": None,
    },
    "a module": {
        "fxprune.json": {"fxprune": "0.1.0", "artifact": "module"}, "model.pt2": None, "model.safetensors": None,
    },
}  # fmt: skip


@pytest.mark.parametrize("case", MODELS)
def test_models_are_replaced(tmp_path: Path, case: str) -> None:
    out = directory(tmp_path / "out", MODELS[case])
    with atomic_directory(out, force=True) as folder:
        write_json(folder / "config.json", CONFIG)
    assert [path.name for path in out.iterdir()] == ["config.json"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("case", sorted(MODELS))
def test_an_export_replaces_only_its_like(tmp_path: Path, case: str) -> None:
    out = directory(tmp_path / "out", MODELS[case])
    if case == "nothing" or "ONNX" in case:
        assert check_target(out, force=True, export="onnx").place
        return
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(RequestError, match=r"out holds a model that is no onnx export of fxprune") as caught:
        api.export("demo", out, force=True)
    assert caught.value.hint == "--force of an export replaces only an earlier onnx export; choose another --out"
    assert sorted(tmp_path.rglob("*")) == before


def test_an_export_of_another_format_stays(tmp_path: Path) -> None:
    out = directory(tmp_path / "out", MODELS["an ONNX graph of before"])
    check_target(out, force=True)
    with pytest.raises(RequestError, match="is no npz export of fxprune"):
        check_target(out, force=True, export="npz")


def test_the_files_of_any_exporter_are_known_again(tmp_path: Path) -> None:
    for _ in range(2):
        with atomic_directory(tmp_path / "out", force=True) as folder:
            (folder / "weights.npz").touch()
            (folder / "parts").mkdir()
            (folder / "parts" / "1.bin").touch()
            write_json(folder / "fxprune.json", {"format": "npz"})
    record = json.loads((tmp_path / "out" / "fxprune.json").read_text())
    assert record == {"format": "npz", "files": {"fxprune.json": None, "parts/1.bin": EMPTY, "weights.npz": EMPTY}}
    (tmp_path / "out" / "mine.npz").touch()
    with pytest.raises(RequestError, match=r"mine\.npz belongs to no model"):
        check_target(tmp_path / "out", force=True)


@pytest.mark.parametrize("change", ["written", "link", "pipe"])
def test_a_listed_file_that_holds_something_else_stays(tmp_path: Path, change: str) -> None:
    out, kept = tmp_path / "out", tmp_path / "kept"
    with atomic_directory(out, force=True) as folder:
        (folder / "weights.npz").write_text("made")
        write_json(folder / "fxprune.json", {"format": "npz"})
    check_target(out, force=True)
    if change == "written":
        (out / "weights.npz").write_text("mine")
    else:
        (out / "weights.npz").rename(kept)
        (out / "weights.npz").symlink_to(kept) if change == "link" else os.mkfifo(out / "weights.npz")
    with pytest.raises(RequestError, match=r"weights\.npz belongs to no model"):
        check_target(out, force=True)


def test_the_large_files_of_a_model_are_not_hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They have names of models. Hashing 14 GB would take longer than replacing them."""
    out = directory(tmp_path / "out", {"config.json": CONFIG, "fxprune.json": OURS, "model.safetensors": None})
    hashed: list[object] = []
    monkeypatch.setattr(replaceable, "_holds", lambda *given: hashed.append(given) or False)
    check_target(out, force=True)
    assert not hashed


@pytest.mark.parametrize("name", ["config.json", "fxprune.json"])
def test_a_pipe_or_a_link_to_one_does_not_hold_the_program(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    out = directory(tmp_path / "out", {"LICENSE": None})
    for make in (lambda place: place.symlink_to(tmp_path / "pipe"), os.mkfifo):
        make(out / name)
        with pytest.raises(RequestError, match=r"contains files, but no model|belongs to no model"):
            check_target(out, force=True)
        (out / name).unlink()


def test_only_a_file_of_some_size_is_taken_for_a_configuration(tmp_path: Path) -> None:
    out = directory(tmp_path / "out", {"LICENSE": None})
    (out / "config.json").symlink_to("/dev/zero")
    with pytest.raises(RequestError, match="contains files, but no model"):
        check_target(out, force=True)


def test_what_apply_wrote_is_replaced_until_something_is_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_source, "verify_written", lambda *_: {})
    source, out = write_checkpoint(tmp_path / "source"), tmp_path / "out"
    for seed in (1, 2):
        api.apply(source, "random", ratio=0.5, seed=seed, out=out, force=True)
    before = contents(out)
    (out / "todo.md").touch()
    with pytest.raises(RequestError, match=r"todo\.md belongs to no model"):
        api.apply(source, "random", ratio=0.5, out=out, force=True)
    assert contents(out, "todo.md") == before


def test_a_link_to_other_work_does_not_hide_it(tmp_path: Path) -> None:
    directory(tmp_path / "thesis", {"config.json": CONFIG, "thesis.tex": None})
    (tmp_path / "out").symlink_to(tmp_path / "thesis")
    with pytest.raises(RequestError, match=r"thesis\.tex belongs to no model"):
        check_target(tmp_path / "out", force=True)


def test_a_link_to_a_directory_in_a_model_is_not_followed(tmp_path: Path) -> None:
    directory(tmp_path / "adapters", {"adapter_config.json": None})
    out = directory(tmp_path / "out", {"config.json": CONFIG})
    (out / "adapter").symlink_to(tmp_path / "adapters")
    with pytest.raises(RequestError, match="adapter belongs to no model"):
        check_target(out, force=True)


@pytest.mark.parametrize("inside", ["", "sub"])
def test_the_working_directory_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inside: str) -> None:
    out = directory(tmp_path / "out", {"config.json": CONFIG, "sub/": None} if inside else {"config.json": CONFIG})
    monkeypatch.chdir(out / inside)
    with pytest.raises(RequestError, match="contains the directory that this command runs in"):
        check_target(Path("..") if inside else Path(), force=True)


def test_a_working_directory_that_is_gone_is_in_nobodys_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = directory(tmp_path / "out", {"config.json": CONFIG})
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert "config.json" in check_target(out, force=True).place


def test_a_mount_point_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = directory(tmp_path / "out", {"config.json": CONFIG})
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == out)
    with pytest.raises(RequestError, match="is a mount point"):
        check_target(out, force=True)


def test_the_demo_looks_at_all_its_places_first(tmp_path: Path) -> None:
    out = tmp_path / "out"
    directory(out / "onnx", {"graph.svg": None})
    with pytest.raises(RequestError, match=r"graph\.svg belongs to no model"):
        api.run_demo(out, force=True)
    assert [path.name for path in out.iterdir()] == ["onnx"]


def test_the_demo_has_an_export_where_it_exports(tmp_path: Path) -> None:
    directory(tmp_path / "out" / "onnx", MODELS["an artifact"])
    with pytest.raises(RequestError, match="onnx holds a model that is no onnx export of fxprune"):
        api.run_demo(tmp_path / "out", force=True)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["onnx"]


def test_the_demo_replaces_no_scores_but_its_own(tmp_path: Path) -> None:
    (out := tmp_path / "out").mkdir()
    (out / "scores.safetensors").write_bytes(b"mine")
    with pytest.raises(RequestError, match="not a scores file of fxprune"):
        api.run_demo(out, force=True)
    assert [(path.name, path.read_bytes()) for path in out.iterdir()] == [("scores.safetensors", b"mine")]


def test_the_demo_keeps_scores_of_something_else(tmp_path: Path) -> None:
    (out := tmp_path / "out").mkdir()
    mine = out / "scores.safetensors"
    api.apply("demo", "wanda{ratio=0.25,samples=2,length=16}", scores=mine, dry_run=True)
    before = mine.read_bytes()
    with pytest.raises(RequestError, match="scores of 'wanda'"):
        api.run_demo(out, force=True)
    assert [(path.name, path.read_bytes()) for path in out.iterdir()] == [("scores.safetensors", before)]


def test_a_demo_that_ends_at_once_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object, **__: object) -> None:
        threads.append(torch.get_num_threads())
        raise KeyboardInterrupt

    threads: list[int] = []
    monkeypatch.setattr("fxprune.api.demo.apply", stopped)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with pytest.raises(KeyboardInterrupt):
            api.run_demo(tmp_path / "out")
        assert (threads, torch.get_num_threads()) == ([1], 3)  # threads of a small model wait for busy cores
    finally:
        torch.set_num_threads(before)
    assert list(tmp_path.iterdir()) == []


def test_the_demo_begins_again_in_its_own_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fxprune.api.demo.apply", stopped)
    out = tmp_path / "out"
    directory(out / "pruned", {"config.json": CONFIG})
    assert main(["demo", "--out", str(out)]) == 2
    assert "replace it with --force" in capsys.readouterr().err
    assert main(["demo", "--out", str(out), "--force"]) == 130
    assert "belongs to no model" not in capsys.readouterr().err
