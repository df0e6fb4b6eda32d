"""Code of a directory runs only when the user allowed it for this very directory."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2LMHeadModel

import fxprune
from fxprune.backends.onnx.runtime import OnnxDecoder
from fxprune.backends.verify import FreshProcess, Job, VerificationError, verify
from fxprune.cli import main
from fxprune.ir.errors import FxpruneError, RequestError
from fxprune.runtime.consent import Consent
from fxprune.tracer.model import build_meta, load_config, load_model, load_tokenizer, resolve
from fxprune.tracer.texts.corpus import load_text

from ..corpora import word_tokenizer
from .planted import AUTO, plant, write_code, write_into

PACKAGE = Path(fxprune.__file__).parent


@pytest.fixture
def ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that planted code leaves. Whoever asks whether it may run is told yes."""
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 100))
    return tmp_path / "ran"


def test_a_check_that_does_not_decode_does_not_run_the_source(tmp_path: Path, ran: Path) -> None:
    """The written model cannot decode 8 tokens after 8, so the source is loaded too: with nothing allowed."""
    source = plant(tmp_path / "source", ran, n_positions=9, architectures=["Evil"])
    words = ["apply", str(source), "--pass", "random{seed=0}", "--ratio", "0.25", "--form", "free"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    assert not ran.exists()
    record = json.loads((tmp_path / "out" / "fxprune.json").read_text())
    assert record["form"] == "free"
    assert record["checks"]["cached_generate_equals_uncached"] is False
    assert set(record["code"]) == {"modeling_fxprune.py"}


@pytest.mark.wide
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model_type": "evil"},
        {"architectures": ["Evil"]},
        {"model_type": "evil", "architectures": ["GPT2LMHeadModel"]},
    ],
    ids=["known type", "unknown type", "unknown class", "unknown type, known class"],
)
@pytest.mark.parametrize(
    "open_it",
    [
        lambda at: load_model(resolve(at)),
        lambda at: build_meta(load_config(resolve(at))),
        lambda at: load_tokenizer(resolve(at)),
        fxprune.load,
        lambda at: fxprune.export(at, at.with_name("onnx"), cache=False),
    ],
    ids=["model", "config", "tokenizer", "load", "export"],
)
def test_nothing_asks_whether_code_may_run(
    open_it: Callable[[Path], Any], changes: dict[str, Any], tmp_path: Path, ran: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(*_: object) -> str:
        raise AssertionError("the user was asked")

    monkeypatch.setattr("builtins.input", asked)
    source = plant(tmp_path / "source", ran, **changes)
    write_into(source / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.EvilTokenizer", None]})
    write_code(source / "custom_generate" / "generate.py", ran)
    with contextlib.suppress(FxpruneError):
        open_it(source)
    assert not ran.exists()


def test_the_free_form_of_a_decoder_is_exported_without_its_file(tmp_path: Path, ran: Path) -> None:
    """The widths are in its configuration; the file beside it may be anybody's."""
    source, free = plant(tmp_path / "source", ran, auto_map={}), tmp_path / "free"
    fxprune.apply(source, "random{ratio=0.5,seed=0}", out=free, form="free")
    written = AutoModelForCausalLM.from_pretrained(free, trust_remote_code=True, dtype=torch.float32).eval()
    write_code(free / "modeling_fxprune.py", ran)
    report = fxprune.export(free, tmp_path / "onnx")
    assert not ran.exists()
    assert report.to_json()["code"] == {}
    assert "auto_map" not in json.loads((tmp_path / "onnx" / "config.json").read_text())
    ids = torch.arange(20).reshape(2, 10)
    with torch.no_grad():
        expected = written(input_ids=ids).logits
    found = torch.from_numpy(OnnxDecoder(tmp_path / "onnx").logits(ids.numpy()))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "entries",
    [{"fxprune": {"shapes": {}, "attributes": {}, "own_class": "evil.GPT2LMHeadModel"}}, {}],
    ids=["in the free form", "plain"],
)
def test_own_code_of_a_decoder_is_exported_by_consent_only(entries: dict[str, Any], tmp_path: Path, ran: Path) -> None:
    source = plant(tmp_path / "source", ran, **entries)
    with pytest.raises(RequestError, match="has its own modelling code"):
        fxprune.export(source, tmp_path / "onnx")
    assert not ran.exists()


def test_code_that_is_allowed_runs(tmp_path: Path, ran: Path) -> None:
    """So the tests above would see it."""
    load_config(resolve(plant(tmp_path / "source", ran, model_type="evil"), trust_remote_code=True))
    assert ran.exists()


def test_consent_is_for_one_directory(tmp_path: Path) -> None:
    mine, other = tmp_path / "mine", tmp_path / "other"
    consent = Consent.of_user(mine, code=True)
    assert consent.keywords(mine) == consent.keywords(mine / ".." / "mine") == {"trust_remote_code": True}
    assert consent.keywords(other) == Consent.nothing(mine).keywords(mine) == {"trust_remote_code": False}
    assert Consent.from_json(json.loads(json.dumps(consent.to_json()))) == consent


def test_a_config_from_elsewhere_is_not_covered(tmp_path: Path, ran: Path) -> None:
    source = plant(tmp_path / "source", ran)
    config = load_config(resolve(source))
    build_meta(config, consent=Consent.of_user(tmp_path / "another", code=True))
    assert not ran.exists()


def test_the_modelling_file_must_be_the_one_that_was_written(tmp_path: Path, ran: Path) -> None:
    folder = plant(tmp_path / "out", ran)
    consent = Consent.of_written(folder, {"evil.py": "0" * 64})
    with pytest.raises(FxpruneError, match=r"evil\.py is not the file that fxprune wrote"):
        consent.keywords(folder)
    with pytest.raises(FxpruneError, match=r"evil\.py is not the file that fxprune wrote"):
        verify([Job(consent, None, "AutoModelForCausalLM")])
    assert not ran.exists()


def test_the_fresh_process_compares_it_too(tmp_path: Path, ran: Path) -> None:
    folder = plant(tmp_path / "out", ran)
    job = {"folder": str(folder), "auto": "AutoModelForCausalLM", "inputs": "", "logits": "", "outputs": []}
    with (
        FreshProcess() as fresh,
        pytest.raises(VerificationError, match=r"evil\.py is not the file that fxprune wrote"),
    ):
        fresh.run([{**job, "keywords": {"trust_remote_code": True}, "written": {"evil.py": "0" * 64}}])
    assert not ran.exists()


@pytest.mark.parametrize(
    ("file", "entries", "trust"),
    [
        ("config.json", {"auto_map": {**AUTO, "AutoConfig": "owner/name--evil.EvilConfig"}}, True),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["owner/name--evil.EvilTokenizer", None]}}, True),
        ("config.json", {"attn_implementation": "kernels-community/flash-attn"}, False),
        ("config.json", {"text_config": {"_attn_implementation": {"": "owner/name@main:fast"}}}, False),
    ],
    ids=["model", "tokenizer", "kernel", "kernel of a part"],
)
def test_code_of_another_repository_is_refused(
    file: str, entries: dict[str, Any], trust: bool, tmp_path: Path, ran: Path
) -> None:
    source = plant(tmp_path / "source", ran)
    write_into(source / file, **entries)
    with pytest.raises(RequestError, match=rf"{file} names code of another repository"):
        load_config(resolve(source, trust_remote_code=trust))
    assert not ran.exists()


def test_a_pickle_beside_nothing_is_not_read_by_load(tmp_path: Path) -> None:
    source = plant(tmp_path / "source", tmp_path / "ran")
    torch.save({}, source / "pytorch_model.bin")
    (source / "model.safetensors").unlink()
    with pytest.raises(FxpruneError, match="cannot load"):
        fxprune.load(source)


def test_a_data_set_with_a_script_runs_nothing(tmp_path: Path, ran: Path) -> None:
    folder = tmp_path / "data"
    write_code(folder / "data.py", ran)
    with (folder / "rows.pkl").open("wb") as file:
        pickle.dump(Path.write_text, file)
    with pytest.raises(RequestError, match="neither a file nor a data set"):
        load_text(str(folder), word_tokenizer("abc"))
    assert not ran.exists()


def test_a_pickle_that_a_class_reads_besides_its_weights(
    tmp_path: Path, ran: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as the voices of a model that speaks: safetensors for the weights are no reason to read it."""
    source = plant(tmp_path / "source", ran, auto_map={})
    torch.save({"voice": torch.ones(3)}, source / "voices.pt")
    read: list[Any] = []
    kept, usual = torch.load, GPT2LMHeadModel.from_pretrained.__func__

    def with_voices(cls: type, *args: Any, **kwargs: Any) -> Any:
        read.append(torch.load(source / "voices.pt", weights_only=True))
        return usual(cls, *args, **kwargs)

    monkeypatch.setattr(GPT2LMHeadModel, "from_pretrained", classmethod(with_voices))
    for refused in (lambda: load_model(resolve(source)), lambda: fxprune.export(source, tmp_path / "onnx")):
        with pytest.raises(RequestError, match=r"voices\.pt is a pickle") as caught:
            refused()
        assert "--allow-pickle" in (caught.value.hint or "")
    assert read == []
    load_model(resolve(source, allow_pickle=True))
    assert len(read) == 1
    assert torch.load is kept


LOADING = ("from_pretrained", "from_config")
WITHOUT_CODE = {
    "backends/huggingface/weight_source.py": "from_pretrained(None, ...): a class of transformers, weights in memory",
    "demo/train.py": "the model that it has just trained",
}
OWN = (
    "open_source",
    "resolve",
    "write_loaded",
    "evaluate",
    "apply",
    "bench",
    "export",
    "trace",
    "Request",
    "ApplyRequest",
    "AnalyzeRequest",
    "EvaluationRequest",
)


MADE = {
    "of_user": {"api/benchmarking/benchmark.py", "tracer/loaded.py", "tracer/model.py"},
    "of_written": {
        "api/benchmarking/benchmark.py",
        "backends/huggingface/load.py",  # what the record lists, where the user allows it
        "backends/huggingface/save.py",
    },
    "for_copy": {"api/merging/directory.py"},
    "Consent": set[str](),
}
"""Where consent is made, but consent to nothing."""


def calls(path: Path) -> list[tuple[str, ast.Call]]:
    """Every call in a file, by the last part of the name of what is called."""
    found = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    names = [getattr(call.func, "attr", getattr(call.func, "id", "")) for call in found]
    return list(zip(names, found, strict=True))


def test_only_consent_tells_transformers_what_may_run() -> None:
    seen = 0
    for path in sorted(PACKAGE.rglob("*.py")):
        place = path.relative_to(PACKAGE).as_posix()
        if place.startswith(("tests/", "benchmarks/")) or "/." in f"/{place}":
            continue
        for name, call in calls(path):
            given = {keyword.arg for keyword in call.keywords}
            if name in MADE and place != "runtime/consent.py":
                assert place in MADE[name], f"{place}:{call.lineno}: {name}"
            if "trust_remote_code" in given:
                assert name in OWN, f"{place}:{call.lineno}: {name}(trust_remote_code=...)"
            if name in LOADING and place not in WITHOUT_CODE:
                spread = [ast.unparse(keyword.value) for keyword in call.keywords if keyword.arg is None]
                words = ("keywords(", "no_code(", "allowed")
                assert any(word in text for text in spread for word in words), f"{place}:{call.lineno}: {name}"
                seen += 1
    assert seen >= 8
