"""transformers.js in a browser: a page loads it and a model from a server on this machine, decodes, and answers."""

from __future__ import annotations

import http.server
import json
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PAGE = Path(__file__).with_name("page.html")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PACKAGE = "@huggingface/transformers@4.3.1"
LIMIT = 300
"""Seconds that the page may take."""

_TYPES = {".js": "text/javascript", ".mjs": "text/javascript", ".wasm": "application/wasm", ".json": "application/json"}


class NoBrowserError(Exception):
    """Something that the page needs is not on this machine."""


def installed(folder: Path) -> Path:
    """The ``node_modules`` with transformers.js, installed by npm when it is not there.

    Raises:
        NoBrowserError: npm cannot install it.
    """
    modules = folder / "node_modules"
    if not (modules / "@huggingface" / "transformers" / "dist" / "transformers.min.js").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        command = ["npm", "install", "--prefix", str(folder), "--ignore-scripts", "--no-audit", PACKAGE]
        if shutil.which("npm") is None:
            raise NoBrowserError("npm is missing\nhint: install Node.js, for example by apt-get install npm")
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise NoBrowserError(f"npm cannot install {PACKAGE}: {done.stderr.strip()[-200:]}")
    return modules


def decode(model: Path, job: Mapping[str, Any], modules: Path) -> dict[str, Any]:
    """What the page answers: ``tokens``, ``logprobs`` and ``version``, or ``message``.

    Args:
        model: a directory of ``fxprune export --layout transformers.js``.
        job: ``prompt`` and ``expected``, token ids.
        modules: from :func:`installed`.

    Raises:
        NoBrowserError: there is no browser, or it does not answer in time.
    """
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        raise NoBrowserError("no browser is installed\nhint: apt-get install chromium")
    places = {
        "models/model": model,
        "transformers": modules / "@huggingface" / "transformers" / "dist",
        "onnxruntime": modules / "onnxruntime-web" / "dist",
    }
    answered: list[dict[str, Any]] = []
    done = threading.Event()
    handler = _handler(places, json.dumps(dict(job)).encode(), answered, done)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory() as profile:
        # Without the sandbox it also starts in a container; the page is ours, and it may ask this server only.
        command = [program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                   f"--user-data-dir={profile}", f"http://127.0.0.1:{server.server_port}/"]  # fmt: skip
        browser = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            done.wait(LIMIT)
        finally:
            browser.kill()
            browser.wait()
            server.shutdown()
            server.server_close()
    if not answered:
        raise NoBrowserError(f"{program} has not answered in {LIMIT} s")
    return answered[0]


def _handler(
    places: Mapping[str, Path], job: bytes, answered: list[dict[str, Any]], done: threading.Event
) -> type[http.server.BaseHTTPRequestHandler]:
    """Serves the page, its job and the files below some places, and keeps what the page answers."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0].strip("/")
            if path == "job":
                return self.send(job, "application/json")
            file = PAGE if not path else next(
                (root / path.removeprefix(f"{name}/") for name, root in places.items() if path.startswith(f"{name}/")),
                Path("none"),
            )  # fmt: skip
            if ".." in Path(path).parts or not file.is_file():
                return self.send_error(404)
            return self.send(file.read_bytes(), "text/html" if not path else _TYPES.get(file.suffix, "text/plain"))

        def do_POST(self) -> None:
            answered.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send(b"", "text/plain")
            done.set()

        def send(self, body: bytes, kind: str) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    return Handler
