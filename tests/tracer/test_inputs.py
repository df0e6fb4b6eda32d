"""Data sets of inputs: files of tensors, functions, folders of images and sounds, tables, texts; what is refused."""

from __future__ import annotations

import json
import math
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import save_file

from fxprune.ir.errors import RequestError
from fxprune.runtime.consent import Consent
from fxprune.runtime.vocabulary.kept import Renumbering
from fxprune.tracer.inputs.arguments import Arguments
from fxprune.tracer.inputs.batches import inputs_of_batches
from fxprune.tracer.inputs.input_set import DataSet
from fxprune.tracer.inputs.media import Medium, read_sound, resampled
from fxprune.tracer.inputs.opened import names_inputs, open_inputs, open_rows, open_tensors
from fxprune.tracer.inputs.processed import Processors
from fxprune.tracer.inputs.renumbered import renumbered
from fxprune.tracer.model import ModelSource

from ..corpora import word_tokenizer
from ..families.other import tiny_model

WORDS = ["[unk]", "[pad]", "a", "cat", "sat", "here", "dog", "ran"]
RATE = 16000


class Net(torch.nn.Module):
    def forward(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        return x * scale


NET = Arguments.of(Net())


@pytest.fixture
def processors(tmp_path: Path) -> Callable[[str], Processors]:
    """The processors of a tiny model, in a directory of its own."""

    def made(name: str) -> Processors:
        folder = tmp_path / "model"
        folder.mkdir(exist_ok=True)
        model = tiny_model(name)
        tokenizer = word_tokenizer(WORDS)
        tokenizer.pad_token = "[pad]"
        tokenizer.save_pretrained(folder)
        if name == "whisper":
            transformers.WhisperFeatureExtractor(feature_size=10, chunk_length=1, n_fft=400).save_pretrained(folder)
        model.config.save_pretrained(folder)
        source = ModelSource(name=name, directory=folder, consent=Consent.nothing(folder))
        return Processors(model, source)

    return made


def write_sound(path: Path, seconds: float = 0.1, *, rate: int = RATE, width: int = 2, channels: int = 1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setparams((channels, width, rate, 0, "NONE", ""))
        steps = np.arange(round(seconds * rate)) * (2 * math.pi * 440 / rate)
        numbers = (np.sin(steps) * (2 ** (8 * width - 1) - 1) * 0.5).round().astype("<i8")
        numbers = numbers + 128 if width == 1 else numbers
        frames = numbers.astype("<i8").view("u1").reshape(-1, 8)[:, :width]
        file.writeframes(np.repeat(frames[:, None], channels, 1).tobytes())


def rows(data: DataSet, length: int = 16) -> list[dict[str, Any]]:
    return list(data.rows(length))


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_a_file_holds_samples_by_argument_name(suffix: str, tmp_path: Path) -> None:
    x = torch.arange(12.0).view(4, 3)
    path = tmp_path / f"inputs{suffix}"
    if suffix == ".npz":
        np.savez(path, x=x.numpy())
    else:
        save_file({"x": x}, path)
    data = open_tensors(str(path), NET)
    assert names_inputs(str(path))
    assert [row["x"].tolist() for row in rows(data)] == [[row] for row in x.tolist()]
    assert torch.equal(data.join(data.rows(9))["x"], x)
    assert torch.equal(data.rows(9, 2)[1]["x"], x[1:2])
    assert {float(row["x"][0, 0]) for row in data.rows(9, 4, seed=1)} == {0.0, 3.0, 6.0, 9.0}


def test_a_function_yields_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (
        "import torch\ndef batches():\n    for size in (2, 3):\n"
        "        yield {'x': torch.full((size, 3), float(size))}\n"
        "def fails():\n    raise OSError('no disk')\ndef number():\n    return 3\n"
    )
    (tmp_path / "given_batches.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    data = open_tensors("given_batches:batches", NET)
    assert [float(row["x"][0, 0]) for row in rows(data)] == [2, 2, 3, 3, 3]
    with pytest.raises(RequestError, match=r"given_batches:fails\(\) fails: OSError: no disk"):
        open_tensors("given_batches:fails", NET)
    with pytest.raises(RequestError, match="gives a int, not batches"):
        open_tensors("given_batches:number", NET)


def test_a_directory_of_a_data_set_is_no_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "json").mkdir()
    monkeypatch.chdir(tmp_path)
    assert not names_inputs("json:train")
    assert not names_inputs("no_such_module_anywhere:train")


def test_batches_of_different_first_extents_stay_whole() -> None:
    class Patches(torch.nn.Module):
        def forward(self, x: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
            return x * grid.sum()

    given = [{"x": torch.ones(n, 4), "grid": torch.ones(1, 3)} for n in (5, 7)]
    data = inputs_of_batches("calib", given, Arguments.of(Patches()))
    assert not data.divided
    assert [len(row["x"]) for row in rows(data)] == [5, 7]
    with pytest.raises(RequestError, match="cannot be put together"):
        data.join(rows(data))


def test_positional_batches_and_plain_values() -> None:
    data = inputs_of_batches("calib", [(torch.ones(2, 3), 2.0)], NET)
    assert data.names == {"x", "scale"}
    assert [row["scale"] for row in rows(data)] == [2.0, 2.0]
    assert data.join(rows(data))["scale"] == 2.0


def test_lines_become_token_ids_that_are_filled_up_on_the_right(processors: Callable[[str], Processors]) -> None:
    data = open_rows("calib", ["a cat sat here", "", "dog ran"], processors("bert"))
    assert [row["input_ids"].tolist() for row in rows(data)] == [[[2, 3, 4, 5]], [[6, 7]]]
    assert rows(data, 3)[0]["input_ids"].shape == (1, 3)
    batch = data.join(rows(data))
    pad = tiny_model("bert").config.pad_token_id or 0
    assert batch["input_ids"].tolist() == [[2, 3, 4, 5], [6, 7, pad, pad]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert not data.labelled


def test_a_text_file_and_rows_with_targets(processors: Callable[[str], Processors], tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("a cat\n\nthe dog\n")
    assert len(rows(open_inputs(str(tmp_path / "lines.txt"), processors("bert")))) == 2
    pairs = [{"text": "a cat", "target": "dog"}, {"text": "dog", "target": "cat sat here"}]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    data = open_inputs(str(tmp_path / "pairs.jsonl"), processors("t5"))
    assert data.labelled
    assert data.join(rows(data))["labels"].tolist() == [[6, -100, -100], [3, 4, 5]]


def test_a_folder_of_sounds_with_transcripts(processors: Callable[[str], Processors], tmp_path: Path) -> None:
    folder = tmp_path / "speech"
    for name in ("b.wav", "a.wav"):
        write_sound(folder / name)
    described = [{"file_name": "b.wav", "text": "dog"}, {"file_name": "a.wav", "text": "sat cat"}]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, described)))
    data = open_inputs(str(folder), processors("whisper"))
    found = rows(data)
    assert [row["labels"].tolist() for row in found] == [[[6]], [[4, 3]]]
    assert found[0]["input_features"].shape == (1, 10, 100)
    (folder / "metadata.jsonl").unlink()
    (folder / "metadata.csv").write_text("file_name,transcription\na.wav,cat\nb.wav,dog\n")
    assert [row["labels"].tolist() for row in rows(open_inputs(str(folder), processors("whisper")))] == [[[3]], [[6]]]


def test_images_in_folders_of_classes(processors: Callable[[str], Processors], tmp_path: Path) -> None:
    images = pytest.importorskip("PIL.Image")
    made = processors("vit")
    transformers.ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "model")
    names = list(made.config.label2id)
    for number, name in enumerate(names):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        images.new("L", (40, 50), 60 * number).save(tmp_path / "pictures" / name / f"{number}.png")
    data = open_inputs(str(tmp_path / "pictures"), made)
    found = sorted((int(row["labels"]), tuple(row["pixel_values"].shape)) for row in rows(data))
    assert found == [(number, (1, 3, 32, 32)) for number in range(len(names))]


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_sounds_of_every_width(width: int, tmp_path: Path) -> None:
    write_sound(tmp_path / "x.wav", width=width, channels=2)
    found = read_sound(Medium("x", tmp_path / "x.wav"), RATE)
    expected = 0.5 * np.sin(np.arange(1600) * (2 * math.pi * 440 / RATE))
    assert np.abs(found - expected).max() <= 2 / 2 ** (8 * width - 1) + 1e-6


@pytest.mark.parametrize("rate", [8000, 22050, 48000])
def test_another_rate_is_resampled(rate: int) -> None:
    wave_of = lambda r: torch.sin(torch.arange(r, dtype=torch.float64) * (2 * math.pi * 440 / r))  # noqa: E731
    assert torch.allclose(resampled(wave_of(rate), rate, RATE), wave_of(RATE), atol=1e-9)


def test_rows_of_a_data_set_directory(processors: Callable[[str], Processors], tmp_path: Path) -> None:
    import pyarrow as arrow
    from pyarrow import parquet

    sound = tmp_path / "x.wav"
    write_sound(sound)
    audio = arrow.array([{"bytes": sound.read_bytes(), "path": "x.wav"}] * 2)
    features = {"audio": {"_type": "Audio"}, "text": {"dtype": "string", "_type": "Value"}}
    table = arrow.table({"audio": audio, "text": ["dog", "sat cat"]})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    (tmp_path / "set").mkdir()
    parquet.write_table(table, tmp_path / "set" / "train.parquet")
    found = rows(open_inputs(str(tmp_path / "set"), processors("whisper")))
    assert [row["labels"].tolist() for row in found] == [[[6]], [[4, 3]]]
    assert found[0]["input_features"].shape == (1, 10, 100)


def bad_npz(folder: Path, **arrays: Any) -> str:
    np.savez(folder / "bad.npz", **arrays)
    return str(folder / "bad.npz")


def sounds(folder: Path, metadata: str = "", *names: str) -> str:
    for name in names or ("a.wav", "b.wav"):
        write_sound(folder / "sounds" / name)
    if metadata:
        (folder / "sounds" / "metadata.jsonl").write_text(metadata)
    return str(folder / "sounds")


def text_of(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def outside(folder: Path) -> str:
    write_sound(folder / "secret.wav")
    return sounds(folder, '{"file_name": "../secret.wav", "text": "dog"}')


REFUSED: list[tuple[str, Callable[[Path], str], str, str]] = [
    ("bert", lambda f: bad_npz(f, input_ids=np.ones((2, 3)), x=np.ones((2, 3))), "holds 'x', which", "input_ids"),
    (
        "bert", lambda f: bad_npz(f, input_ids=np.ones((2, 3)), attention_mask=np.ones((3, 3))),
        "dimensions of the tensors", "count samples",
    ),
    ("bert", lambda f: str(f / "no.npz"), "there is no file", "check the path"),
    ("bert", lambda f: text_of(f, "x.pdf", "x"), "is a file of an unknown kind: .pdf", ".safetensors or .npz"),
    ("bert", lambda f: text_of(f, "x.txt", "\n\n"), "is empty", "give a file with text"),
    ("bert", lambda f: text_of(f, "x.jsonl", '{"body": "x"}'), "has no text; its fields: body", "name the fields text"),
    ("bert", sounds, "holds sounds, and BertForMaskedLM reads text", "data set of text"),
    ("bert", lambda f: str(f / "nothing"), "there is no file or folder", "folder of images or sounds"),
    ("vit", lambda f: text_of(f, "x.txt", "a cat"), "holds text, and ViTFor", "folder of images"),
    ("vit", sounds, "holds sounds, and ViTForImageClassification reads images", "data set of images"),
    ("t5", lambda f: text_of(f, "x.txt", "a cat"), "does not say what T5", "rows with text and target"),
    ("whisper", sounds, "does not say what WhisperForConditionalGeneration should write", "metadata.jsonl"),
    ("whisper", outside, "which is not in that directory", "copy the file there"),
    ("whisper", lambda f: sounds(f, '{"text": "dog"}'), "has no file_name", "the path of the file"),
    (
        "whisper", lambda f: sounds(f, '{"file_name": "a.wav", "text": "dog"}\n{"file_name": "b.wav"}'),
        "line 2 has no text, and others", "for all samples",
    ),
    ("whisper", lambda f: sounds(f, '{"file_name": "a.wav", "text": ["dog"]}'), "text is not a string", "name the"),
    ("whisper", lambda f: sounds(f, "", "a.wav", "c/b.wav"), "holds files beside folders", "in a folder"),
    (
        "whisper", lambda f: text_of(Path(sounds(f, '{"file_name": "a.wav", "text": "a"}')), "a.wav", "no sound")[:-6],
        "a.wav", "soundfile",
    ),
]  # fmt: skip


@pytest.mark.parametrize("row", REFUSED, ids=lambda row: f"{row[0]}: {row[2]}")
def test_what_is_refused(
    row: tuple[str, Callable[[Path], str], str, str], processors: Callable[[str], Processors], tmp_path: Path
) -> None:
    name, made, message, hint = row
    spec = made(tmp_path)
    with pytest.raises(RequestError) as caught:
        open_inputs(spec, processors(name))
    assert message in caught.value.message
    assert hint in caught.value.hint or name == "whisper"
    assert caught.value.hint


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "holds no batch"),
        ([{"x": 1}], "batch 0 of 'calib' holds no tensor"),
        ([{"scale": torch.ones(2)}], "holds no 'x', which Net needs"),
        ([{"x": torch.ones(2, 3)}, {"x": torch.ones(2, 3), "scale": 1.0}], "batch 1 of 'calib' holds x, scale, and"),
        (["text"], "batch 0 of 'calib' is a str"),
        ([{"x": torch.ones(0, 3)}], "holds no sample"),
    ],
)
def test_batches_that_do_not_fit(batches: list[Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        inputs_of_batches("calib", batches, NET)


def test_samples_that_cannot_be_joined() -> None:
    data = inputs_of_batches("calib", [{"x": torch.ones(1, 3)}, {"x": torch.ones(1, 4)}], NET)
    with pytest.raises(RequestError, match="samples of different shapes"):
        data.join(rows(data))
    with pytest.raises(RequestError, match="it holds 2 samples, 3 are needed"):
        data.rows(4, 3)


def test_a_data_set_gives_the_ids_that_its_tokens_have_now() -> None:
    class Source:
        def __len__(self) -> int:
            return 2

        def sample(self, index: int, length: int) -> dict[str, Any]:
            ids = torch.tensor([[2, 5, -100], [2, 3, 7]][index])[None, :length]
            return {"input_ids": ids, "places": ids, "scale": torch.ones(1, 1)}

    data = DataSet("rows", Source(), frozenset({"input_ids", "places", "scale"}))
    found = renumbered(data, Renumbering(np.array([2, 5, 6]), 7), frozenset({"input_ids"}))
    first = found.rows(3, 1)[0]
    assert first["input_ids"].tolist() == [[0, 1, -100]]
    assert first["places"].tolist() == [[2, 5, -100]]
    assert first["scale"].tolist() == [[1.0]]
    with pytest.raises(RequestError, match="'rows' holds token 3"):
        list(found.rows(3))
    assert data.rows(3, 1)[0]["input_ids"].tolist() == [[2, 5, -100]]
