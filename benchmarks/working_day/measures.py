"""What a working day measures itself, and the files that its commands need; all in the working directory."""

from __future__ import annotations

import gzip
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

REPEATS = 5
INTERRUPTED = (
    "demo", "--pass", "generate{windows=4,length=16,first=0},wanda{samples=4,length=16}", "--ratio", "0.2", "--out",
)  # fmt: skip


def import_everything() -> None:
    """What all commands import that need torch, once, to fork from."""
    import torch  # noqa: F401
    import transformers.models.llama.modeling_llama  # noqa: F401

    import fxprune.api.evaluating.comparison
    import fxprune.api.pruning.request  # noqa: F401


def export_alone() -> str:
    """CPU seconds of a program that exports the demo with torch and transformers alone: a floor for any tracing."""
    code = (
        "import time\n"
        "import torch, torch.export\n"
        "torch_done = time.process_time()\n"
        "from fxprune.demo import MODEL_DIR\n"
        "from transformers import AutoModelForCausalLM\n"
        "model = AutoModelForCausalLM.from_pretrained(MODEL_DIR).eval()\n"
        "model_done = time.process_time()\n"
        "tokens = torch.zeros(2, 16, dtype=torch.long)\n"
        "torch.export.export(model, (), {'input_ids': tokens, 'use_cache': False}, strict=False)\n"
        "done = time.process_time()\n"
        "print(f'{torch_done:.1f} CPU s of torch, {model_done - torch_done:.1f} of transformers and a model, '\n"
        "      f'{done - model_done:.1f} of torch.export: {done:.1f}')\n"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    return done.stdout


def card() -> str:
    """How to load it, from the model card."""
    text = Path("FREE/README.md").read_text(encoding="utf-8")
    return "\n".join(block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL)[:1])


def write_recipe() -> None:
    """The recipe of FREE, as its command prints it."""
    from fxprune.backends.artifact import read_record
    from fxprune.backends.recipe import recipe_of

    Path("r.yaml").write_text(recipe_of(read_record(Path("FREE"))), encoding="utf-8")


def write_wrong_recipe() -> None:
    """One whose model is not there."""
    Path("wrong.yaml").write_text("ratio: 0.25\nmodel: ./not-here\npass: taylor\n", encoding="utf-8")


def same_files() -> str:
    """Whether every file of the two results is the same."""
    return _compared("FREE", "AGAIN")


def same_after_resume() -> str:
    """The same of a run that was continued, and one that nothing ended."""
    if not Path("WHOLE").exists():
        _apply("WHOLE").wait()
    return _compared("R", "WHOLE")


def _compared(one: str, other: str) -> str:
    paths = [(folder, path) for folder in (one, other) for path in Path(folder).rglob("*") if path.is_file()]
    names = {str(path.relative_to(folder)) for folder, path in paths}
    differing = [name for name in sorted(names) if not _same(Path(one, name), Path(other, name))]
    return f"{len(names)} files; different: {', '.join(differing) or 'none'}"


def _same(one: Path, other: Path) -> bool:
    return one.is_file() and other.is_file() and one.read_bytes() == other.read_bytes()


def _apply(out: str, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "fxprune", "apply", *INTERRUPTED, out, *more]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


def interrupted() -> str:
    """What a run says that is ended by SIGTERM as soon as a pass is kept."""
    run = _apply("R", "--resume")
    while run.poll() is None and not any(Path().glob(".R.stages/*")):
        time.sleep(0.01)
    if run.poll() is None:
        os.kill(run.pid, signal.SIGTERM)
    _, said = run.communicate()
    return "\n".join(line for line in said.splitlines() if line != "starting")


def write_rows() -> None:
    """Texts in the forms that people have them in; one row of each is empty."""
    from fxprune.demo import text

    rows = [row for row in text("evaluation").split("\n\n") if row.strip()][:40]
    quoted = ['"' + row.replace('"', '""') + '"' for row in rows]
    Path("rows.csv").write_text("id,title,body\n" + "".join(f"{n},t,{row}\n" for n, row in enumerate([*quoted, ""])))
    Path("rows.json").write_text(json.dumps({"data": [{"text": row} for row in [*rows, None]]}))
    with gzip.open("rows.jsonl.gz", "wt") as file:
        file.writelines(json.dumps({"text": row}) + "\n" for row in rows)
    pair = {"prompt": "What does the function do?", "completion": "It returns a list of the names in the module."}
    Path("pairs.jsonl").write_text((json.dumps(pair) + "\n") * 8)


def progress_cost() -> str:
    """CPU seconds of a pass over text that nobody listens to, and of one whose progress is shown, in turn; in a process
    of its own, because a process whose threads have worked cannot be forked from."""
    code = f"from {__name__} import _progress_cost; print(_progress_cost())"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},  # threads that wait for one another use CPU seconds too
    )  # fmt: skip
    return done.stdout


def _progress_cost() -> str:
    import fxprune
    from fxprune.api.terminal.progress_display import Loudness, shown

    def quiet() -> None:
        fxprune.evaluate("demo", window=32, windows=160, speed=False)

    def loud() -> None:
        with shown(Loudness.USUAL, "progress.log") as progress:
            fxprune.evaluate("demo", window=32, windows=160, speed=False, progress=progress)

    quiet()  # what is imported and traced for the first time
    times: dict[str, list[float]] = {"off": [], "on": []}
    for _ in range(REPEATS):
        for name, call in (("off", quiet), ("on", loud)):
            times[name].append(_seconds(call))
    off, on = (median(times[name]) for name in ("off", "on"))
    return f"off {off:.2f}, on {on:.2f}: {on / off:.3f} times (medians of {REPEATS}, alternating)"


def _seconds(call: Callable[[], Any]) -> float:
    begin = time.process_time()
    call()
    return time.process_time() - begin


def without_extra() -> str:
    """What is said where a package of an extra is missing: its import is blocked."""
    code = (
        "import importlib.util, sys\n"
        "find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *more: None if name in ('onnx', 'onnxscript', 'onnxruntime') "
        "else find(name, *more)\n"
        "from fxprune.cli import main\n"
        "sys.exit(main(['export', 'V', '--out', 'ONNX2']))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    return "\n".join(line for line in done.stderr.splitlines() if line != "starting")


def pages() -> str:
    """How many pages there are, and how many links and commands in them."""
    docs = Path(__file__).parents[2] / "docs"
    texts = [page.read_text(encoding="utf-8") for page in docs.rglob("*.md")]
    links = sum(len(re.findall(r"\]\([^)\s]+\)", text)) for text in texts)
    commands = sum(len(re.findall(r"^ {4}fxprune ", text, re.MULTILINE)) for text in texts)
    return f"{len(texts)} pages, {links} links, {commands} commands"
