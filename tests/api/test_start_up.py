"""What answers at once: commands that need neither a model nor torch, which takes seconds to import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fxprune.api.places import check_early
from fxprune.ir.errors import RequestError

RUN = """
import sys
from fxprune.cli import main
try:
    code = main(sys.argv[1:])
except SystemExit as end:
    code = end.code
print("torch" in sys.modules, "numpy" in sys.modules, code, file=sys.stderr)
"""

APPLY = ("apply", "demo", "--out", "nowhere", "--pass")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--help",), 0, "usage: fxprune"),
        (("apply", "--help"), 0, "--pass"),
        (("analyze", "--help"), 0, "--bound"),
        (("analyze", "demo", "--pass", "lora"), 2, "analyze takes one pass that scores units"),
        (("report", "--help"), 0, "--eval"),
        (("help",), 0, "completion"),
        (("help", "apply"), 0, "--pass"),
        (("help", "aply"), 2, "did you mean apply?"),
        (("aply",), 2, "did you mean apply?"),
        (("apply", "demo", "--ratoi", "0.2"), 2, "did you mean --ratio"),
        (("export", "demo", "--otu", "x"), 2, "hint: did you mean --out or --layout? see `fxprune help export`"),
        (("passes", "taylor", "lora"), 0, "calibration windows"),
        (("passes", "tailor"), 2, "did you mean taylor?"),
        (("completion", "bash"), 0, "complete -o bashdefault"),
        (("passes",), 0, "taylor"),
        (("passes", "--json"), 0, '"name": "taylor"'),
        ((*APPLY, "tailor"), 2, "unknown pass 'tailor'"),
        ((*APPLY, "taylor{ratoi=0.2}"), 2, "ratoi"),
        ((*APPLY, "taylor{ratio=2}"), 2, "ratio=2"),
        ((*APPLY, "taylor{variant=third}"), 2, "third"),
        ((*APPLY, "taylor{target=params:0}"), 2, "params:0"),
        ((*APPLY, "reap{heads=kv}"), 2, "reap scores whole experts only"),
        ((*APPLY, "expert_channels{experts=true}"), 2, "expert_channels is for inner widths only"),
        ((*APPLY, "vocabulary{languages=klingon}"), 2, "'klingon' is no script of Unicode"),
        ((*APPLY, "vocabulary{keep=tokens}"), 2, "keep=tokens cannot be read"),
        ((*APPLY, "taylor{runtime=vllm,multiple_of=8}"), 2, "is no multiple of 128"),
        ((*APPLY, "lora", "--multiple-of", "8"), 2, "no pass of 'lora' has an option 'multiple_of'"),
        (("apply", "demo", "--out", "nowhere"), 2, "missing --pass"),
    ],
)  # fmt: skip
def test_torch_is_not_imported_for(arguments: tuple[str, ...], code: int, said: str) -> None:
    ran = subprocess.run([sys.executable, "-c", RUN, *arguments], capture_output=True, text=True, check=True)
    *told, last = ran.stderr.splitlines()
    assert said in ran.stdout + "\n".join(told)
    assert last == f"False False {code}", "torch, NumPy, exit code"


@pytest.mark.parametrize("command", [("apply", "demo", "--pass", "taylor", "--calib", "demo"), ("demo",)])
@pytest.mark.parametrize(
    ("out", "said"),
    [
        (".", "already exists"),
        ("/dev/null/x", "/dev/null is a file, not a directory"),
        ("", "--out: '' is empty, which no path is"),
    ],
)
def test_torch_is_not_imported_for_a_place_that_cannot_be_written(
    command: tuple[str, ...], out: str, said: str
) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", RUN, *command, "--out", out], capture_output=True, text=True, check=True
    )
    *told, last = ran.stderr.splitlines()
    assert said in "\n".join(told)
    assert last == "False True 2", "torch, NumPy, exit code"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--force",), "y belongs to no model, and --force would remove it"),
        (("--resume",), "mine already exists, and there is nothing to go on from"),
    ],
)
def test_torch_is_not_imported_for_a_place_that_stays(options: tuple[str, ...], said: str, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "y").write_text("mine")
    command = ("apply", "demo", "--pass", "magnitude", "--ratio", "0.3", "--out", "mine", *options)
    ran = subprocess.run(
        [sys.executable, "-c", RUN, *command], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    *told, last = ran.stderr.splitlines()
    assert said in " ".join(told)
    assert last == "False True 2", "torch, NumPy, exit code"
    assert (tmp_path / "mine" / "y").read_text() == "mine"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--ratio", "0.3", "--resume", "--dry-run"), "--resume has no effect with --dry-run"),
        (("--target", "params=0.9,0.8", "--out", "{params}", "--resume"), "--resume has no effect on several sizes"),
        (("--target", "params=0.9,0.8", "--out", "mine"), "mine is one directory, and --target has 2 sizes"),
        (("--target", "params=0.9,0.8", "--out", "{params}"), "0.8 already exists"),
        (("--target", "params=0.8", "--out", "{params}"), "0.8 already exists"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_torch_is_not_imported_for_options_without_effect(options: tuple[str, ...], said: str, tmp_path: Path) -> None:
    (tmp_path / "0.8").mkdir()
    ran = subprocess.run(
        [sys.executable, "-c", RUN, "apply", "demo", "--pass", "magnitude", *options],
        capture_output=True, text=True, check=True, cwd=tmp_path,
    )  # fmt: skip
    *told, last = ran.stderr.splitlines()
    assert said in " ".join(told)
    assert last.startswith("False ")
    assert last.endswith(" 2"), "torch, NumPy, exit code"


def test_an_interrupted_run_of_a_directory_that_is_there_wants_force(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / ".out.stages").mkdir()
    with pytest.raises(RequestError, match=r"out already exists$"):
        check_early(tmp_path / "out", force=False, resume=True)
    (tmp_path / ".out.stages").rmdir()
    with pytest.raises(RequestError, match="there is nothing to go on from"):
        check_early(tmp_path / "out", force=False, resume=True)
