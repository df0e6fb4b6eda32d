"""Runs command lines of fxprune where some modules cannot be found: ``python hidden.py NAMES LINES``, both as JSON.

Prints as JSON, for every line, its exit code and what it wrote to stdout and stderr.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import json
import shlex
import sys
from collections.abc import Sequence
from typing import Any


class Without:
    """A finder that does not find certain modules, in front of one that would."""

    def __init__(self, finder: Any, names: Sequence[str]) -> None:
        self.finder, self.names = finder, frozenset(names)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """The specification of a module, or None."""
        return None if name.partition(".")[0] in self.names else self.finder.find_spec(name, path, target)

    def find_distributions(self, context: Any) -> Any:
        """Installed packages but those with such modules."""
        found = getattr(self.finder, "find_distributions", lambda _: ())(context)
        return (one for one in found if not self.names & set(modules_of(one)))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.finder, name)


def modules_of(distribution: importlib.metadata.Distribution) -> list[str]:
    """What a package brings, by the first part of the names of its files, and its own name."""
    files = [str(file).partition("/")[0].removesuffix(".py") for file in distribution.files or ()]
    return [*files, distribution.metadata["Name"]]


def main(names: Sequence[str], lines: Sequence[str]) -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of each line."""
    sys.meta_path[:] = [Without(finder, names) for finder in sys.meta_path]
    from fxprune.cli import main as command

    done = []
    for line in lines:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = command(shlex.split(line))
        done.append((code, out.getvalue(), err.getvalue()))
    return done


if __name__ == "__main__":
    print(json.dumps(main(*map(json.loads, sys.argv[1:]))))
