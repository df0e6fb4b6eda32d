"""What holds for every test: no network, and no failure because a machine was slow; fixtures that several files use."""

from __future__ import annotations

import os
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from . import draws

if TYPE_CHECKING:
    from fxprune.backends.verify import Job

    from .backends.onnx.onnx_models import Decoders
    from .forks import Forks

# What tests share holds assertions too; rewritten, they run under ``python -O`` and say what they compared. Pytest
# imports it as part of a package that is called as the checkout's folder is.
TESTS = Path(__file__).parent
SHARED = [path.relative_to(TESTS).with_suffix("") for path in sorted(TESTS.rglob("*.py"))]
pytest.register_assert_rewrite(
    *(
        ".".join((package, *module.parts))
        for module in SHARED
        if not module.name.startswith(
            ("test_", "conftest", "__init__", "draws")
        )  # imported already, and asserts nothing
        for package in {str(__package__), "fxprune.tests"}
    )
)

# Before anything imports a library that reads it; so do the fixtures import theirs.
os.environ["HF_HUB_OFFLINE"] = "1"

draws.register()


def pytest_make_parametrize_id(config: pytest.Config, val: Any, argname: str) -> str | None:  # noqa: ARG001
    """Functions by their names: pytest would give their addresses, and worker processes must agree on every name."""
    return getattr(val, "__qualname__", None) if callable(val) else None


@pytest.hookimpl(tryfirst=True)  # before rows are left out by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of a test that is marked ``first_rows(n)``, the rows after the first ``n`` are ``wide``."""
    seen: Counter[str] = Counter()
    for item in items:
        mark = item.get_closest_marker("first_rows")
        if mark is not None:
            test = item.nodeid.partition("[")[0]
            seen[test] += 1
            if seen[test] > mark.args[0]:
                item.add_marker("wide")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes a ``device`` runs on the CPU and on every accelerator that torch finds."""
    if "device" in metafunc.fixturenames:
        from fxprune.runtime.place.devices import found_devices

        metafunc.parametrize("device", found_devices(), ids=str)


@pytest.fixture(scope="session", autouse=True)
def without_head_start() -> Iterator[None]:
    """The process that checks what was written starts when it is needed: most tests check many at once, or none."""
    from fxprune.backends.huggingface import save

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(save, "FreshProcess", nullcontext)
        yield


@pytest.fixture(scope="session", autouse=True)
def traced_once() -> Iterator[None]:
    """Tests are of what is done with the trace of a tiny model; tracing it again would take most of their time."""
    from .traces import shared_traces

    with shared_traces():
        yield


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """Runs Python where what a process does is tested, not that it starts."""
    from .forks import Forks

    made = Forks()
    yield made
    made.close()


@pytest.fixture(scope="session", autouse=True)
def forked_checks(forks: Forks) -> Iterator[None]:
    """Whoever loads what was written is forked from a process that has imported torch and transformers."""
    from fxprune.runtime import child_process

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(child_process, "subprocess", forks.module())
        yield


@pytest.fixture
def real_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that hold that what was written loads in a process that starts from nothing."""
    from fxprune.runtime import child_process

    monkeypatch.setattr(child_process, "subprocess", subprocess)


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """What would be reloaded one by one, each in a process of its own; here all at once, at the end."""
    from fxprune.backends.huggingface import weight_source

    held: list[Job] = []

    def postpone(job: Job, *_: object) -> dict[str, Any]:
        held.append(job)
        return {}

    monkeypatch.setattr(weight_source, "verify_written", postpone)
    return held


@pytest.fixture(scope="session")
def decoders(tmp_path_factory: pytest.TempPathFactory) -> Decoders:
    """Tiny decoders, and their ONNX directories as tests ask for them."""
    from .backends.onnx.onnx_models import Decoders

    return Decoders(tmp_path_factory.mktemp("decoders"))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Training that does not depend on how many threads add up a sum."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
