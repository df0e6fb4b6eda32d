"""The version comes from the tags of git, and there is one where there is neither git nor a tag."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import fxprune

ROOT = Path(fxprune.__file__).parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
FALLBACK = PROJECT["tool"]["setuptools_scm"]["fallback_version"]

setuptools_scm = pytest.importorskip("setuptools_scm", reason="comes with the extra fxprune[test]")


def git(folder: Path, *words: str) -> None:
    who = ("-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
    subprocess.run(["git", *who, *words], cwd=folder, check=True, capture_output=True)


def commit(folder: Path) -> None:
    git(folder, "commit", "--allow-empty", "-m", "a change")


def version(folder: Path) -> str:
    return str(setuptools_scm.get_version(root=str(folder), **PROJECT["tool"]["setuptools_scm"]))


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "SETUPTOOLS_SCM_PRETEND_VERSION"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "checkout"
    folder.mkdir()
    return folder


def test_without_git_it_is_the_fallback(checkout: Path) -> None:
    assert version(checkout) == FALLBACK


def test_without_a_tag_it_counts_commits(checkout: Path) -> None:
    git(checkout, "init", "-q")
    commit(checkout)
    assert re.fullmatch(r"0\.1\.0\.dev\d+", version(checkout))


def test_a_tag_is_the_version_and_what_follows_is_the_next(checkout: Path) -> None:
    git(checkout, "init", "-q")
    commit(checkout)
    git(checkout, "tag", "v1.2.3")
    assert version(checkout) == "1.2.3"
    commit(checkout)
    assert version(checkout) == "1.2.4.dev1"


def test_it_names_no_commit_and_no_day(checkout: Path) -> None:
    """A version stands in every artifact, which the same run writes with the same bytes."""
    git(checkout, "init", "-q")
    commit(checkout)
    (checkout / "changed").write_text("not committed")
    git(checkout, "add", "changed")
    assert "+" not in version(checkout)


@pytest.mark.parametrize("package", ["torch", "transformers"])
def test_the_matrix_runs_both_ends_of_a_range(package: str) -> None:
    wanted = {r.name: r.specifier for r in map(Requirement, PROJECT["project"]["dependencies"])}[package]
    ends = {part.operator: part.version for part in wanted}
    rows = dict(re.findall(r'^ *\[(\w+)\]="(.+)"$', (ROOT / ".ci" / "matrix").read_text("utf-8"), re.MULTILINE))
    oldest, newest = (
        next(word for word in rows[row].split() if word.startswith(package)) for row in ("oldest", "newest")
    )
    assert Requirement(oldest).specifier.contains(f"{ends['>=']}.0" if ends[">="].count(".") == 1 else ends[">="])
    assert oldest.startswith(f"{package}==")
    assert newest == f"{package}<{ends['<']}"
