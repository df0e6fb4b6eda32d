"""What is written of models with their own code is measured, exported, replayed and resumed, by consent."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import fxprune
from fxprune.api.pruning import model_run
from fxprune.backends.huggingface import weight_source
from fxprune.cli import main

from ..checkpoints import contents
from .written import OWN, TEXT

READ = "samples=2,length=8"
WINDOWS = {"window": 16, "windows": 4, "device": "cpu"}


@pytest.fixture(autouse=True, scope="module")
def _no_fresh_process() -> Iterator[None]:
    """Other tests load what was written."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weight_source, "verify_written", lambda *_: {})
        yield


def pruned(root: Path, name: str, form: str, passes: str = "magnitude{ratio=0.25,heads=off}", **options: Any) -> Path:
    """A folder with the source and what was made of it, in directories of these names."""
    source = root / name
    if not source.exists():
        OWN[name].write(source)
    out = root / f"{name}_{form}"
    fxprune.apply(source, passes, out=out, form=form, trust_remote_code=True, **options)
    return out


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("used")
    pruned(root, "packed", "uniform")
    pruned(root, "packed", "free")
    return root


def test_they_are_measured(root: Path) -> None:
    """All at once, on the windows that every one reads; the dense model and the small ones are in one process."""
    models = [root / name for name in ("packed", "packed_uniform", "packed_free")]
    held, disk = (
        fxprune.evaluate(models, [TEXT], trust_remote_code=True, offload=offload, **WINDOWS)
        for offload in ("none", "disk")
    )
    assert held[0].parameters > held[1].parameters == held[2].parameters
    assert held[1].perplexity == held[2].perplexity != held[0].perplexity
    for one, other in zip(held, disk, strict=True):
        assert one.perplexity.value == pytest.approx(other.perplexity.value, rel=1e-5)


@pytest.mark.parametrize("form", ["uniform", "free"])
def test_without_consent_none_is_measured_or_pruned(root: Path, form: str, tmp_path: Path) -> None:
    out = root / f"packed_{form}"
    with pytest.raises(fxprune.RequestError, match=r"needs its own code: modeling_\w+\.PackedForCausalLM") as caught:
        fxprune.evaluate(out, [TEXT], **WINDOWS)
    assert "--trust-remote-code" in (caught.value.hint or "")
    with pytest.raises(fxprune.RequestError, match="needs its own code"):
        fxprune.apply(out, "magnitude", ratio=0.5, out=tmp_path / "out")
    with pytest.raises(fxprune.RequestError, match="needs its own code"):
        fxprune.export(out, tmp_path / "onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("form", ["uniform", "free"])
def test_a_plan_gives_the_same_bytes_again(root: Path, form: str, tmp_path: Path) -> None:
    out = root / f"packed_{form}"
    fxprune.apply(root / "packed", plan=out, out=tmp_path / "again", form=form, trust_remote_code=True)
    own = "fxprune.json", "README.md"  # say by which passes, or by whose plan
    assert contents(tmp_path / "again", *own) == contents(out, *own)
    with pytest.raises(fxprune.RequestError, match="needs its own code"):
        fxprune.apply(root / "packed", plan=out, out=tmp_path / "without", form=form)
    assert not (tmp_path / "without").exists()


@pytest.mark.wide
@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("packed", "free"),
        pytest.param("interleaved", "uniform", marks=pytest.mark.slow),
        pytest.param("planar", "free", marks=pytest.mark.slow),
        pytest.param("mixture", "uniform", marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_run_goes_on(name: str, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = f"taylor{{ratio=0.25,heads=off,{READ}}},compensate{{{READ}}}"
    passes += "" if name == "packed" else ",lora{steps=2,batch=2,length=8}"
    given = {"calib": [TEXT]} | ({} if name == "packed" else {"data": [TEXT]})
    whole = pruned(tmp_path, name, form, passes, **given)
    (tmp_path / "two").mkdir()
    (tmp_path / name).rename(tmp_path / "two" / name)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(model_run, "save", full)
        with pytest.raises(OSError, match="No space"):
            pruned(tmp_path / "two", name, form, passes, resume=True, **given)
    source, out = tmp_path / "two" / name, tmp_path / "two" / f"{name}_{form}"
    assert not out.exists()
    applied = fxprune.apply(source, passes, out=out, form=form, trust_remote_code=True, resume=True, **given)
    assert applied.resumed.startswith("compensate" if name == "packed" else "lora")
    assert contents(out) == contents(whole)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["uniform", "free"])
@pytest.mark.parametrize("name", OWN)
def test_they_are_exported(name: str, form: str, tmp_path: Path) -> None:
    """The exporter compares the graph with the model, and decodes where there is a cache."""
    out = pruned(tmp_path, name, form)
    cached = OWN[name].causal and name != "planar"
    given: dict[str, Any] = {} if OWN[name].causal else {"example": "input_ids=int64[2,7]"}
    report = fxprune.export(
        out, tmp_path / "onnx", cache=False if name == "planar" else None, trust_remote_code=True, **given
    )
    assert (tmp_path / "onnx" / "model.onnx").is_file()
    assert ("greedy tokens equal" in report.summary) is cached
    if cached:
        small, graph = fxprune.evaluate([out, tmp_path / "onnx"], [TEXT], trust_remote_code=True, **WINDOWS)
        assert small.perplexity.value == pytest.approx(graph.perplexity.value, rel=1e-4)


def test_a_model_without_a_cache_is_not_exported_with_one(tmp_path: Path) -> None:
    source = OWN["planar"].write(tmp_path / "planar")
    with pytest.raises(fxprune.FxpruneError, match="returns no key-value cache") as caught:
        fxprune.export(source, tmp_path / "onnx", trust_remote_code=True)
    assert "--no-cache" in (caught.value.hint or "")
    assert not (tmp_path / "onnx").exists()


def test_a_loaded_model_goes_the_same_way(root: Path, tmp_path: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(root / "packed", trust_remote_code=True)
    fxprune.apply(model, "magnitude{ratio=0.25,heads=off}", out=tmp_path / "loaded", trust_remote_code=True)
    ids = torch.arange(12).view(2, 6)
    with torch.no_grad():
        found, expected = (
            fxprune.load(path, trust_remote_code=True).eval()(ids).logits
            for path in (tmp_path / "loaded", root / "packed_uniform")
        )
    assert torch.equal(found, expected)


def test_directories_of_one_name_do_not_meet(root: Path, tmp_path: Path) -> None:
    """The Auto classes would take the class of the first model for the second's: their configurations have one code."""
    (tmp_path / "packed").symlink_to(root / "packed_free", target_is_directory=True)
    found = fxprune.evaluate([root / "packed", tmp_path / "packed"], [TEXT], trust_remote_code=True, **WINDOWS)
    assert found[0].parameters > found[1].parameters


def test_the_command_line(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["apply", str(root / "packed"), "--pass", "random{ratio=0.25}", "--form", "free", "--trust-remote-code"]
    assert main([*asked, "--out", str(tmp_path / "out")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "copied, since it may run: configuration_packed.py, modeling_packed.py" in said
    assert main(["trace", str(tmp_path / "out"), "--trust-remote-code"]) == 0
    assert "PackedForCausalLM" in capsys.readouterr().out
    assert main(["trace", str(tmp_path / "out")]) == 2
    assert "needs its own code" in capsys.readouterr().err
