"""Completion in a shell: what bash offers, and that the other scripts name everything."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from fxprune.api.terminal.arguments import build_parser
from fxprune.api.terminal.completion import SHELLS, completion
from fxprune.cli import COMMANDS
from fxprune.passes.registry import PASSES

NAMES = [one.name for one in PASSES]


def script(shell: str) -> str:
    return completion(shell, build_parser(COMMANDS), NAMES)


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["ap"], {"apply"}),
        (["apply", "demo", "--mult"], {"--multiple-of"}),
        (["apply", "demo", "--pass", "mag"], {"magnitude"}),
        (["apply", "demo", "--form", ""], {"auto", "uniform", "free"}),
        (["passes", "t"], {"taylor", "turn"}),
        (["completion", ""], set(SHELLS)),
        (["doctor", "--de"], {"--debug"}),
    ],
)
def test_bash_offers(words: list[str], offered: set[str]) -> None:
    line = ["fxprune", *words]
    typed = f"COMP_WORDS=({' '.join(repr(word) for word in line)}); COMP_CWORD={len(words)}"
    asked = f'{script("bash")}\n{typed}\n_fxprune\nprintf "%s\\n" "${{COMPREPLY[@]}}"\n'
    ran = subprocess.run(["bash", "--norc"], input=asked, capture_output=True, text=True, check=True)
    assert set(ran.stdout.split()) == offered
    assert not ran.stderr


@pytest.mark.parametrize("shell", SHELLS)
def test_every_command_flag_and_pass_is_named(shell: str) -> None:
    text = script(shell)
    dash = "-l " if shell == "fish" else "--"
    words = set(re.findall(r"[\w-]+", text))
    assert {*COMMANDS, *NAMES} <= words
    for command in build_parser(COMMANDS).commands.values():
        flags = [flag[2:] for flag in command._option_string_actions if flag.startswith("--")]
        assert flags
        assert not [flag for flag in flags if f"{dash}{flag}" not in text]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_the_script_can_be_read_where_the_shell_is_installed(shell: str) -> None:
    text = script(shell)
    assert text.startswith("#compdef fxprune\n" if shell == "zsh" else "complete -c fxprune")
    assert text.count("'") % 2 == 0 or shell == "zsh"
    if (found := shutil.which(shell)) is not None:
        ran = subprocess.run([found, "-n"], input=text, capture_output=True, text=True, check=False)
        assert (ran.returncode, ran.stderr) == (0, "")
