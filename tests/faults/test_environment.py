"""A process with something missing: it gives the right result, or says what is wrong, and exits with 1 or 2."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

import fxprune

from ..forks import Forks
from ..security.strangers import write_model

ROOT = str(Path(fxprune.__file__).parents[1])

START = """
import os, resource, sys
sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)
{fault}
from fxprune.cli import main
sys.exit(main(sys.argv[1:]))
"""
"""What each process runs: the fault first, then the command line. torch and transformers have been imported before."""

WRITTEN = ["README.md", "config.json", "fxprune.json", "fxprune.plan", "generation_config.json", "model.safetensors",
           "tokenizer.json", "tokenizer_config.json"]  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("environment") / "model")


class Command:
    """Runs fxprune where a fault has been set up."""

    def __init__(self, forks: Forks, folder: Path) -> None:
        self._forks, self._folder = forks, folder

    def __call__(
        self, *arguments: str | Path, fault: str = "", cwd: Path | None = None, **env: str | None
    ) -> tuple[int, str, str]:
        """Exit code, stdout and stderr; an environment variable that is None is taken away."""
        every = {**os.environ, "PYTHONPATH": ROOT, **env}
        command = [sys.executable, "-P", "-c", START.format(fault=fault), *map(str, arguments)]
        own = {name: value for name, value in every.items() if value is not None}
        done = self._forks.run(command, env=own, cwd=cwd or self._folder)
        return done.returncode, done.stdout, done.stderr


@pytest.fixture
def run(forks: Forks, tmp_path: Path) -> Command:
    return Command(forks, tmp_path)


def pruned(model: Path, out: Path) -> list[str | Path]:
    return ["apply", model, "--pass", "magnitude", "--ratio", "0.5", "--out", out]


def assert_written(out: Path) -> None:
    """An artifact is there, whole, and nothing beside it."""
    assert sorted(path.name for path in out.iterdir()) == WRITTEN
    assert json.loads((out / "fxprune.json").read_text(encoding="utf-8"))["checks"]["all_finite"] is True
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def traced(model: Path, out: Path) -> list[str | Path]:
    """A command that writes a file, and takes less time."""
    return ["trace", model, "--dot", out]


def assert_traced(out: Path) -> None:
    assert out.read_text(encoding="utf-8").startswith("graph coupling {")


def assert_told(code: int, stderr: str, message: str) -> None:
    """An error with advice, and no word of a bug."""
    assert code in (1, 2)
    assert stderr.startswith("error: ")
    assert message in stderr
    assert "hint: " in stderr
    assert "is a bug" not in stderr
    assert "Traceback" not in stderr


CLOSED = {
    "stdin closed": "os.close(0)", "stdout closed": "os.close(1)", "stderr closed": "os.close(2)",
    "all three closed": "os.closerange(0, 3)",
    "as Python finds them closed": "os.closerange(0, 3); sys.stdin = sys.stdout = sys.stderr = None",
}  # fmt: skip


@pytest.mark.parametrize("fault", CLOSED.values(), ids=CLOSED)
def test_standard_files_that_are_closed(model: Path, tmp_path: Path, run: Command, fault: str) -> None:
    code, _, stderr = run(*traced(model, tmp_path / "out.dot"), fault=fault)
    assert (code, stderr) == (0, "")
    assert_traced(tmp_path / "out.dot")


def test_nothing_is_printed_into_what_is_written(model: Path, tmp_path: Path, run: Command) -> None:
    out = tmp_path / "here" / "out"
    out.parent.mkdir()
    assert run(*pruned(model, out), fault=CLOSED["as Python finds them closed"])[0] == 0
    assert_written(out)


def test_a_closed_stdout_gets_no_number_of_another_file(model: Path, run: Command) -> None:
    code, stdout, stderr = run("trace", model, fault="os.close(1)")
    assert (code, stdout, stderr) == (0, "", "")


PIPE = "read, write = os.pipe(); os.close(read); os.dup2(write, {number}); os.close(write)"


@pytest.mark.parametrize("arguments", [["passes"], ["passes", "--json"], ["trace"]], ids=" ".join)
def test_a_reader_that_has_gone(model: Path, run: Command, arguments: list[str]) -> None:
    if arguments == ["trace"]:
        arguments = ["trace", str(model)]
    code, _, stderr = run(*arguments, fault=PIPE.format(number=1))
    assert (code, stderr) == (1, "")


def test_a_stdout_whose_disk_is_full(run: Command) -> None:
    code, _, stderr = run("passes", fault="os.dup2(os.open('/dev/full', os.O_WRONLY), 1)")
    assert_told(code, stderr, "No space left on device")


@pytest.mark.parametrize(
    "env",
    [{"HOME": None}, {"HOME": "/proc/nowhere"}, {"HOME": ""}, {"HOME": None, "HF_HOME": "/proc/nowhere"}],
    ids=str,
)
def test_no_home(model: Path, tmp_path: Path, run: Command, env: dict[str, str | None]) -> None:
    code, _, stderr = run(*traced(model, tmp_path / "out.dot"), **env)
    assert (code, stderr) == (0, "")
    assert_traced(tmp_path / "out.dot")


def test_neither_a_home_nor_the_temporary_directory_that_is_named(model: Path, tmp_path: Path, run: Command) -> None:
    out = tmp_path / "here" / "out"
    out.parent.mkdir()
    code, _, stderr = run(*pruned(model, out), HOME=None, TMPDIR="/proc/nowhere")
    assert (code, stderr) == (0, "")
    assert_written(out)


NO_TEMPORARY = "import tempfile; tempfile.tempdir = None; tempfile._candidate_tempdir_list = lambda: ['/proc/nowhere']"


def test_no_temporary_directory_at_all(model: Path, tmp_path: Path, run: Command) -> None:
    out = tmp_path / "here" / "out"
    out.parent.mkdir()
    code, _, stderr = run(*pruned(model, out), fault=NO_TEMPORARY)
    assert_told(code, stderr, "no temporary directory can be used")
    assert "TMPDIR" in stderr
    assert not list(out.parent.iterdir())


GONE = "gone = os.path.join(os.getcwd(), 'gone'); os.mkdir(gone); os.chdir(gone); os.rmdir(gone)"


@pytest.mark.parametrize("arguments", [["passes"], ["trace", "demo"], ["doctor"], ["formats", "--json"]], ids=" ".join)
def test_a_current_directory_that_is_gone(run: Command, arguments: list[str]) -> None:
    code, stdout, stderr = run(*arguments, fault=GONE)
    assert_told(code, stderr, "the current directory cannot be used")
    assert (code, stdout) == (2, "")


ASCII = "sys.stderr.reconfigure(encoding='ascii', errors='strict')"

LOCALES: dict[str, dict[str, str | None]] = {
    "C": {"LANG": "C", "LC_ALL": "C"},
    "C without UTF-8": {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "ASCII": {"PYTHONIOENCODING": "ascii"},
    "Latin 1": {"PYTHONIOENCODING": "latin-1"},
}


@pytest.mark.first_rows(1)
@pytest.mark.parametrize("env", LOCALES.values(), ids=LOCALES)
def test_a_path_that_is_not_ascii(model: Path, tmp_path: Path, run: Command, env: dict[str, str | None]) -> None:
    folder = tmp_path / "模型 größe"
    folder.mkdir()
    encoding = env.get("PYTHONIOENCODING") or "ascii"
    strict = f"sys.stdout.reconfigure(encoding={encoding!r}, errors='strict')"
    code, stdout, stderr = run(
        "trace", folder / "ß", fault=f"{strict}; os.symlink({str(model)!r}, 'ß')", cwd=folder, **env
    )
    assert (code, stderr) == (0, "")
    assert "LlamaForCausalLM" in stdout
    code, _, stderr = run(*traced(model, folder / "模.dot"), fault=strict, **env)
    assert (code, stderr) == (0, "")
    assert_traced(folder / "模.dot")
    code, _, stderr = run("trace", folder / "größe", fault=ASCII, **env)
    assert_told(code, stderr, "there is no directory")


@pytest.mark.parametrize("name", [b"m\xff", b"\xe9t\xe9", b"a\xc3"], ids=repr)
def test_names_that_are_no_utf_8(model: Path, tmp_path: Path, run: Command, name: bytes) -> None:
    folder = tmp_path / os.fsdecode(name)
    folder.mkdir()
    for path in model.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    before = sorted(os.listdir(os.fsencode(tmp_path)))
    # A process is told its arguments as bytes; here they travel as JSON.
    held = f"sys.argv[1:] = [a.replace('NAME', os.fsdecode({name!r})) for a in sys.argv[1:]]"
    for arguments in (["trace", "NAME"], pruned(Path("NAME"), Path("out")), pruned(model, Path("NAME", "out"))):
        code, _, stderr = run(*arguments, fault=held)
        assert_told(code, stderr, "is not UTF-8")
        assert code == 2
    assert sorted(os.listdir(os.fsencode(tmp_path))) == before


SPACE = """
with open("/proc/self/statm") as file:
    now = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + {more}, now + {more}))
"""


@pytest.mark.parametrize("more", [1 << 20, 20 << 20, 60 << 20], ids=["1 MB", "20 MB", "60 MB"])
def test_little_memory(model: Path, tmp_path: Path, run: Command, more: int) -> None:
    out = tmp_path / "here" / "out"
    out.parent.mkdir()
    code, _, stderr = run(*pruned(model, out), fault=SPACE.format(more=more))
    if code == 0:
        assert_written(out)
    else:
        assert_told(code, stderr, "out of memory")
        assert not out.exists()


def test_64_threads(model: Path, tmp_path: Path, run: Command) -> None:
    out, text = tmp_path / "here" / "out", model.parent / "text.txt"
    out.parent.mkdir()
    many = "import torch; torch.set_num_threads(64)"
    taylor = ["apply", model, "--pass", "taylor{samples=2,length=8}", "--ratio", "0.5", "--calib", text, "--out", out]
    code, _, stderr = run(*taylor, fault=many, OMP_NUM_THREADS="64", MKL_NUM_THREADS="64")
    assert (code, stderr) == (0, "")
    assert_written(out)


def test_64_threads_of_a_benchmark(model: Path, run: Command) -> None:
    bench = ["bench", model, "--threads", "64", "--prompt", "4", "--new", "2", "--rounds", "1", "--json", "--quiet"]
    code, stdout, stderr = run(*map(str, bench), OMP_NUM_THREADS="64")
    assert (code, stderr) == (0, "")
    assert json.loads(stdout)
