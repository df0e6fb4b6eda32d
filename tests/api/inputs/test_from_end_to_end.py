"""Data sets of inputs on the command line and in Python: models of transformers and any module, from end to end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import fxprune
from fxprune.cli import main
from fxprune.ir.errors import RequestError
from fxprune.passes.model.answers import answer_of, distance

from ...families.other import tiny_model
from ...nets import HardCoded, Plain
from ...tracer.test_inputs import WORDS, word_tokenizer, write_sound

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = "samples=4,length=16,batch=2"
TRAINING = "steps=6,batch=4,micro_batch=2,length=16,lr=0.003"


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "bert"
    tiny_model("bert").save_pretrained(folder)
    tokenizer = word_tokenizer(WORDS)
    tokenizer.pad_token = "[pad]"
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "whisper"
    model = tiny_model("whisper")
    model.config.max_source_positions = 50
    torch.manual_seed(0)
    transformers.WhisperForConditionalGeneration(model.config).save_pretrained(folder)
    word_tokenizer(WORDS).save_pretrained(folder)
    transformers.WhisperFeatureExtractor(feature_size=10, chunk_length=1).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("speech")
    for number in range(6):
        write_sound(folder / f"{number}.wav", 0.2 + 0.1 * number)
    texts = [" ".join(WORDS[3 : 4 + number % 3]) for number in range(6)]
    described = [{"file_name": f"{number}.wav", "text": text} for number, text in enumerate(texts)]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, described)))
    return folder


def sentences(folder: Path) -> Path:
    file = folder / "lines.txt"
    file.write_text("\n".join(" ".join(WORDS[2 + (i * j) % 6] for j in range(3 + i % 3)) for i in range(8)))
    return file


@pytest.mark.wide
def test_an_encoder_is_refitted_and_distilled_on_sentences(bert: Path, tmp_path: Path) -> None:
    text, out = str(sentences(tmp_path)), tmp_path / "out"
    passes = f"obs{{{SMALL},rounds=2}},compensate{{{SMALL}}},distill{{{TRAINING}}}"
    command = ["apply", str(bert), "--pass", passes, "--ratio", "0.5", "--calib", text, "--data", text]
    assert main([*command, "--out", str(out), "--device", "cpu"]) == 0
    record = json.loads((out / "fxprune.json").read_text())
    assert record["passes"]["distill"]["samples"] == 8
    assert [(entry["read_as"], entry["name"], entry["pieces"]) for entry in record["texts"]] == [
        ("calibration", "lines.txt", 4), ("recovery", "lines.txt", 8),
    ]  # fmt: skip
    assert record["passes"]["compensate"]["refitted"]


@pytest.mark.slow
def test_a_speech_model_is_trained_on_a_folder_of_sounds(whisper: Path, speech: Path, tmp_path: Path) -> None:
    passes = f"fisher{{{SMALL}}},compensate{{{SMALL}}},lora{{{TRAINING},r=2}}"
    applied = fxprune.apply(whisper, passes, ratio=0.5, calib=speech, data=speech, out=tmp_path / "out", device="cpu")
    losses = applied.report["lora"]["loss"]
    assert losses[-1] < losses[0]
    assert applied.report["lora"]["samples"] == 6
    again = fxprune.load(tmp_path / "out")
    assert sum(parameter.numel() for parameter in again.parameters()) == applied.parameters[1]


def test_batches_in_python_and_scores_in_a_file(bert: Path, tmp_path: Path) -> None:
    ids = 2 + torch.arange(40).view(8, 5) % 6
    given: dict[str, Any] = {"calib": [{"input_ids": ids}], "scores": tmp_path / "s.safetensors", "dry_run": True}
    plans = [fxprune.apply(bert, f"wanda{{{SMALL}}}", ratio=ratio, **given).groups for ratio in (0.5, 0.25)]
    assert plans[0] != plans[1]
    other = {**given, "calib": [{"input_ids": ids.flip(1)}]}
    with pytest.raises(RequestError, match="scores that were computed on another text"):
        fxprune.apply(bert, f"wanda{{{SMALL}}}", ratio=0.5, **other)


@pytest.mark.slow
def test_a_run_goes_on_after_its_last_pass(bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fxprune.passes.recover.distill import Distill

    text, out = sentences(tmp_path), tmp_path / "out"
    passes = f"wanda{{{SMALL}}},compensate{{{SMALL}}},distill{{{TRAINING}}}"

    def broken(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    given: dict[str, Any] = {"ratio": 0.5, "calib": text, "data": text, "out": out, "device": "cpu"}
    with monkeypatch.context() as patch:
        patch.setattr(Distill, "recover", broken)
        with pytest.raises(KeyboardInterrupt):
            fxprune.apply(bert, passes, resume=True, **given)
    applied = fxprune.apply(bert, passes, resume=True, **given)
    assert applied.resumed.startswith("compensate")
    assert [entry["pieces"] for entry in applied.texts] == [4, 8]


REFUSED: list[tuple[str, str, str]] = [
    ("--pass wanda --calib {npz}", "BertForMaskedLM cannot be called with the first sample of", "input_ids [1, 99]"),
    ("--pass wanda --calib {text} --ratio 0.5", "'lines.txt' is too short", "samples=8"),
    ("--pass random,finetune --data {text}", "has no labels to learn from", "finetune{teacher=1}"),
    ("--pass random,lora{teacher=1,top_k=2} --data {text}", "lora: top_k is for text", "leave top_k out"),
]


@pytest.mark.parametrize("row", REFUSED, ids=[row[0] for row in REFUSED])
def test_what_is_refused(
    row: tuple[str, str, str], bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    options, message, hint = row
    monkeypatch.chdir(tmp_path)
    np.savez("long.npz", input_ids=np.full((4, 99), 2))
    text = sentences(tmp_path).name
    command = options.replace("{npz}", "long.npz").replace("{text}", text).split()
    assert main(["apply", str(bert), *command, "--out", "out", "--device", "cpu"]) == 2
    errors = " ".join(capsys.readouterr().err.split())
    assert message in errors
    assert hint in errors
    assert not Path("out").exists()


def apart(one: torch.nn.Module, other: torch.nn.Module, x: torch.Tensor) -> float:
    with torch.no_grad():
        return float(distance(answer_of(one(x), {}), answer_of(other(x), {})))


@pytest.mark.parametrize(
    "passes", ["compensate{samples=16,batch=4}", f"distill{{{TRAINING}}}", f"lora{{{TRAINING},teacher=1}}"]
)
def test_any_module_is_repaired_with_a_file_of_inputs(passes: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = Plain().eval()
    x = torch.randn(40, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    np.savez(tmp_path / "x.npz", x=x[:32].numpy())
    file = tmp_path / "x.npz"
    data = None if "compensate" in passes else file
    found = [
        fxprune.prune_module(net, x[:2], "obs{samples=16,batch=4}", ratio=0.5, calib=file),
        fxprune.prune_module(net, x[:2], f"obs{{samples=16,batch=4}},{passes}", ratio=0.5, calib=file, data=data),
    ]
    assert found[0].plan.keep.keys() == found[1].plan.keep.keys()
    assert apart(found[1].module, net, x[32:]) < 0.9 * apart(found[0].module, net, x[32:])


def test_a_rewritten_graph_is_refitted() -> None:
    """Where a module's own code holds a width, what is refitted is the graph that takes its place."""
    torch.manual_seed(0)
    net, x = HardCoded().eval(), torch.randn(40, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    found = [
        fxprune.prune_module(net, x[:2], passes, ratio=0.5, calib=[x[:32]])
        for passes in ("wanda{samples=32}", "wanda{samples=32},compensate{samples=32}")
    ]
    assert not found[1].in_place
    assert len(found[1].report["compensate"]["refitted"]) == 3
    assert apart(found[1].module, net, x[32:]) < 0.9 * apart(found[0].module, net, x[32:])


def test_convolutions_are_adapted_where_there_is_nothing_else() -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3)).eval()
    x = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    passes = f"wanda{{samples=4}},lora{{{TRAINING},teacher=1,r=2}}"
    report = fxprune.prune_module(net, x[:2], passes, ratio=0.5, calib=[x], data=[x]).report["lora"]
    assert report["projections"] == ["0", "2"]
    assert report["loss"][-1] < report["loss"][0]


def test_a_named_module_is_repaired_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "named_net.py").write_text(
        "import torch\nfrom torch import nn\ndef build():\n    torch.manual_seed(0)\n"
        "    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4))\n"
        "def batches():\n    for seed in range(4):\n"
        "        yield {'input': torch.randn(8, 6, generator=torch.Generator().manual_seed(seed))}\n"
    )
    monkeypatch.chdir(tmp_path)
    passes = f"wanda{{samples=8,batch=4}},compensate{{samples=32,batch=8}},distill{{{TRAINING}}}"
    command = ["apply", "named_net:build", "--example", "float32[2,6]", "--pass", passes, "--ratio", "0.5"]
    assert main([*command, "--calib", "named_net:batches", "--data", "named_net:batches", "--out", "out"]) == 0
    assert json.loads(Path("out/fxprune.json").read_text())["passes"]["distill"]["samples"] == 32
