"""Images and sounds of others: only files of the folder or table that the user names are read, and only as data."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from fxprune.api.inputs.seen_inputs import opened_inputs
from fxprune.ir.errors import RequestError
from fxprune.runtime.consent import Consent
from fxprune.tracer.inputs.folder import read_folder
from fxprune.tracer.inputs.media import Medium, read_image
from fxprune.tracer.inputs.opened import names_function
from fxprune.tracer.inputs.table import read_data_set
from fxprune.tracer.model import ModelSource

from ...tracer.test_inputs import write_sound


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_sound(tmp_path / "secret.wav")
    write_sound(tmp_path / "folder" / "a.wav")
    return tmp_path / "folder"


def test_a_folder_that_leads_elsewhere(folder: Path) -> None:
    assert len(read_folder(folder)) == 1
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "../secret.wav", "text": "x"}))
    with pytest.raises(RequestError, match=r"secret\.wav, which is not in that directory"):
        read_folder(folder)
    (folder / "metadata.jsonl").unlink()
    (folder / "b.wav").symlink_to(folder.parent / "secret.wav")
    with pytest.raises(RequestError, match=r"b\.wav, which is not in that directory"):
        read_folder(folder)
    (folder / "b.wav").unlink()
    (folder / "metadata.csv").symlink_to(folder.parent / "secret.wav")
    with pytest.raises(RequestError, match=r"metadata\.csv, which is not in that directory"):
        read_folder(folder)


@pytest.mark.parametrize("place", ["../secret.wav", "http://example.org/x.wav"])
def test_a_table_that_leads_elsewhere(place: str, tmp_path: Path, folder: Path) -> None:
    import pyarrow as arrow
    from pyarrow import parquet

    path = str(folder / place) if place.startswith("..") else place
    features = {"audio": {"_type": "Audio"}}
    kind = arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])
    table = arrow.table({"audio": arrow.array([{"bytes": None, "path": path}], kind)})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    (tmp_path / "set").mkdir()
    parquet.write_table(table, tmp_path / "set" / "train.parquet")
    with pytest.raises(RequestError, match="which is not in that directory"):
        read_data_set(str(tmp_path / "set"))


def test_an_image_that_would_start_a_program(tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    (tmp_path / "x.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    with pytest.raises(RequestError, match=r"x\.png' is no image that can be read"):
        read_image(Medium("x.png", tmp_path / "x.png"))


def test_looking_for_a_function_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "looked_at.py").write_text("raise SystemExit('it ran')\n")
    monkeypatch.chdir(tmp_path)
    assert names_function("looked_at:batches")
    assert not names_function("not_there_at_all:batches")


@pytest.mark.parametrize("language", [True, False])
def test_an_id_of_a_data_set_runs_no_module_of_the_working_directory(
    language: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "imdb.py").write_text("raise SystemExit('it ran')\n")
    monkeypatch.chdir(tmp_path)
    model: Any = nn.Linear(2, 2)
    model.config = None
    source = ModelSource(name="model", directory=tmp_path, consent=Consent.nothing(tmp_path))
    with pytest.raises(RequestError, match=r"'imdb:train' is the id of a data set, or a function in \./imdb") as caught:
        opened_inputs({"calibration": "imdb:train"}, model, source, language=language)
    assert "package.imdb:function" in caught.value.hint
    assert "imdb" not in sys.modules
