"""Of a model directory only regular files inside it are read or copied; what is written has the modes of the umask."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest

import fxprune
from fxprune import api
from fxprune.backends.atomic_directory import atomic_directory, atomic_file
from fxprune.backends.huggingface import weight_source
from fxprune.ir.errors import RequestError
from fxprune.runtime.model_files import check_model_files, copy_model_file
from fxprune.tracer.texts.rows import read_dataset

from ..checkpoints import contents, write_checkpoint


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "source")


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "shadow"
    path.write_text("secret")
    path.chmod(0o600)
    return path


def to_a_secret(path: Path) -> None:
    path.symlink_to(path.parent.parent / "shadow")


def by_a_chain(path: Path) -> None:
    (path.parent / "first").symlink_to(path.parent.parent / "shadow")
    path.symlink_to("first")


def to_nowhere(path: Path) -> None:
    path.symlink_to("nowhere")


def in_a_circle(path: Path) -> None:
    path.symlink_to(path.name)


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


def a_folder(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("tokenizer_extra.txt", to_a_secret, r"tokenizer_extra\.txt is a link to .*shadow, outside"),
        ("LICENSE.txt", by_a_chain, r"LICENSE\.txt is a link to .*shadow, outside"),
        ("added_tokens.json", to_nowhere, r"added_tokens\.json is a link that leads nowhere"),
        ("vocab.json", in_a_circle, r"vocab\.json is a link that leads nowhere"),
        ("tokenizer.json", a_pipe, r"tokenizer\.json is a pipe"),
        ("chat_template.jinja", a_folder, r"chat_template\.jinja is a directory, where a file belongs"),
        ("additional_chat_templates", to_a_secret, r"additional_chat_templates is a link to .*shadow, outside"),
        ("bpe.codes", to_a_secret, r"bpe\.codes is a link to .*shadow, outside"),
        ("source.spm", to_a_secret, r"source\.spm is a link to .*shadow, outside"),
        ("bpe.codes", a_pipe, r"bpe\.codes is a pipe"),
        ("anything", to_a_secret, r"anything is a link to .*shadow, outside"),
    ],
)
def test_what_leads_out_of_the_model_is_named(
    source: Path, secret: Path, name: str, make: object, message: str
) -> None:
    make(source / name)  # type: ignore[operator]
    out = source.parent / "out"
    for call in (
        lambda: api.apply(source, "random", ratio=0.5, out=out),
        lambda: api.export(source, out),
        lambda: api.trace(source),
    ):
        with pytest.raises(RequestError, match=message):
            call()
    assert not out.exists()
    assert secret.read_text() == "secret"


@pytest.mark.parametrize("inside", ["additional_chat_templates/a.jinja", "onnx/deep/model.onnx"])
def test_a_link_in_a_folder_that_is_read(tmp_path: Path, secret: Path, inside: str) -> None:
    path = tmp_path / "source" / inside
    path.parent.mkdir(parents=True)
    path.symlink_to(secret)
    with pytest.raises(RequestError, match=f"{path.name} is a link to .*shadow, outside"):
        check_model_files(tmp_path / "source")


DATA_SETS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "a path in the README": (r"\.\./shadow\.txt, which is not in", lambda at: readme(at, "../shadow.txt")),
    "an absolute path": (r"shadow\.txt, which is not in", lambda at: readme(at, str(at.parent / "shadow.txt"))),
    "a link": (r"rows\.txt, which is not in", lambda at: (at / "rows.txt").symlink_to("../shadow.txt")),
    "a link to the README": (r"README\.md, which is not in", lambda at: (at / "README.md").symlink_to("../shadow.txt")),
    "a pipe": (r"README\.md is a pipe", lambda at: os.mkfifo(at / "README.md")),
}


def readme(folder: Path, files: str) -> None:
    (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files: {files}\n---\n")


@pytest.mark.parametrize("case", DATA_SETS)
def test_a_data_set_that_reads_elsewhere(tmp_path: Path, case: str) -> None:
    message, make = DATA_SETS[case]
    (tmp_path / "shadow.txt").write_text("secret")
    folder = tmp_path / "data"
    folder.mkdir()
    make(folder)
    with pytest.raises(RequestError, match=message):
        read_dataset(str(folder))


def test_a_data_set_of_its_own_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "data"
    folder.mkdir()
    readme(folder, "rows.txt")
    (folder / "rows.txt").write_text("one\ntwo\n")
    assert read_dataset(str(folder)).rows == ("one", "two")
    assert read_dataset(f"{folder}:default:train[:1]").rows == ("one",)


def test_an_artifact_with_a_link_is_not_loaded(source: Path, secret: Path) -> None:
    (source / "vocab.bpe").symlink_to(secret)
    with pytest.raises(RequestError, match=r"vocab\.bpe is a link to .*shadow, outside"):
        fxprune.load(source)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_the_model_itself_is_no_link(source: Path, name: str) -> None:
    shutil.move(source / name, source.parent / name)
    (source / name).symlink_to(source.parent / name)
    with pytest.raises(RequestError, match=f"{name} is a link to") as caught:
        api.trace(source)
    assert "hard link" in caught.value.hint


def test_links_within_the_directory_are_followed(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_source, "verify_written", lambda *_: {})
    (source / "LICENSE").write_text("free")
    (source / "LICENSE.txt").symlink_to("LICENSE")
    (source / "runs").mkdir()
    (source / "logs").symlink_to("runs")
    (source / "latest").symlink_to("nowhere")  # never read
    api.apply(source, "random", ratio=0.5, out=source.parent / "out")
    copied = source.parent / "out" / "LICENSE.txt"
    assert copied.read_text() == "free"
    assert not copied.is_symlink()


@pytest.fixture
def cached(source: Path) -> Path:
    """A model as the Hub's cache holds it."""
    cache = source.parent / "models--owner--name"
    snapshot = cache / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (cache / "blobs").mkdir()
    for number, path in enumerate(sorted(source.iterdir())):
        shutil.move(path, cache / "blobs" / str(number))
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    return snapshot


def test_the_cache_of_the_hub_is_read(cached: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_source, "verify_written", lambda *_: {})
    out = cached.parents[2] / "out"
    api.apply(cached, "random", ratio=0.5, out=out)
    assert not any(path.is_symlink() for path in out.iterdir())
    (cached.parents[2] / "alias").symlink_to(cached)
    api.trace(cached.parents[2] / "alias")


@pytest.mark.parametrize("where", ["models--other--name/blobs/0", "shadow", "models--owner--name2"])
def test_a_link_out_of_the_cache_of_a_model(cached: Path, where: str) -> None:
    target = cached.parents[2] / where
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text("secret")
    (cached / "tokenizer.json").symlink_to(target)
    with pytest.raises(RequestError, match=r"tokenizer\.json is a link to"):
        check_model_files(cached)


def test_a_directory_that_only_looks_like_a_cache(source: Path, secret: Path) -> None:
    fake = source.parent / "snapshots" / "0123"
    fake.parent.mkdir()
    shutil.move(source, fake)
    (fake / "tokenizer.json").symlink_to(secret)
    with pytest.raises(RequestError, match=r"tokenizer\.json is a link to"):
        check_model_files(fake)


def test_a_file_that_becomes_a_link_is_not_copied(source: Path, secret: Path, tmp_path: Path) -> None:
    (source / "vocab.json").touch()
    check_model_files(source)
    (source / "vocab.json").unlink()
    (source / "vocab.json").symlink_to(secret)
    (tmp_path / "into").mkdir()
    with pytest.raises(RequestError, match=r"vocab\.json is a link to"):
        copy_model_file(source / "vocab.json", tmp_path / "into")
    assert contents(tmp_path / "into") == {}


@pytest.mark.first_rows(1)
@pytest.mark.parametrize("mask", [0o022, 0o077, 0o007])
def test_modes_are_those_of_the_umask(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mask: int) -> None:
    monkeypatch.setattr(weight_source, "verify_written", lambda *_: {})
    (source / "LICENSE").touch()
    (source / "LICENSE").chmod(0o4777)
    before = os.umask(mask)
    try:
        api.apply(source, "random", ratio=0.5, out=tmp_path / "out")
        with atomic_file(tmp_path / "scores") as beside:
            beside.touch(mode=0o700)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o777 & ~mask
    files = [*(tmp_path / "out").iterdir(), tmp_path / "scores"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o666 & ~mask}


def test_a_directory_of_a_group_stays_one(tmp_path: Path) -> None:
    tmp_path.chmod(0o2775)
    with atomic_directory(tmp_path / "out", force=False) as folder:
        (folder / "config.json").touch()
    assert (tmp_path / "out").stat().st_mode & stat.S_ISGID
    assert not (tmp_path / "out" / "config.json").stat().st_mode & stat.S_ISGID
