"""The page in a browser: it draws, on white, on black and on paper, and asks for nothing that it may not have."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from .test_page import evil, full

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason="no chromium is installed")]

QUIET = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr")


def opened(page: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    assert BROWSER is not None
    command = [BROWSER, *QUIET, f"--user-data-dir={page.parent / 'profile'}", *flags, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=240)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("spoiled", [False, True], ids=["plain", "spoiled"])
def test_a_browser_shows_the_page(tmp_path: Path, spoiled: bool) -> None:
    page = tmp_path / "report.html"
    page.write_text(full(evil) if spoiled else full(), encoding="utf-8")
    shown = opened(page, "--dump-dom")
    assert "CONSOLE" not in shown.stderr, "no error, and nothing that the page's own policy refuses"
    assert shown.stdout.count("<svg") == page.read_text(encoding="utf-8").count("<svg") >= 4
    means = {}
    for name, flags in {"light": [], "dark": ["--blink-settings=preferredColorScheme=0"]}.items():
        file = tmp_path / f"{name}.png"
        opened(page, f"--screenshot={file}", "--window-size=1000,3000", *flags)
        pixels = np.asarray(Image.open(file).convert("L"), dtype=np.float64)
        means[name] = float(np.median(pixels))
        assert pixels.std() > 5, "something is drawn"
    assert means["light"] > 240
    assert means["dark"] < 40
    opened(page, f"--print-to-pdf={tmp_path / 'page.pdf'}")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
