"""The commands of the pages have the options that they name."""

import io
import re
import shlex
from contextlib import redirect_stdout, suppress
from functools import cache

import pytest
from machine import ROOT

from cinema_fast.cli import main

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def commands(text: str) -> list[list[str]]:
    """Words after `cinema-fast` or `-m cinema_fast`, of every command in the blocks of a page."""
    found = []
    for block in re.findall(r"^```\w*\n(.*?)^```", text.replace("\\\n", " "), re.DOTALL | re.MULTILINE):
        for command in re.findall(r"^ *(?:.* )?(?:cinema-fast|-m cinema_fast) +([a-z].*)", block, re.MULTILINE):
            with suppress(ValueError):  # prose in a block of output
                found.append(shlex.split(command, comments=True))
    return found


@cache
def options(command: str) -> frozenset[str]:
    """Of a command, as its help prints them."""
    out = io.StringIO()
    with redirect_stdout(out), suppress(SystemExit):
        assert main([command, "--help"]) == 0, command
    return frozenset(re.findall(r"(--[a-z][a-z.-]*)", out.getvalue()))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_options_of_a_page(page):
    for command, *words in commands(page.read_text()):
        unknown = {word.partition("=")[0] for word in words if word.startswith("--")} - options(command)
        assert not unknown, f"cinema-fast {command}"


def test_commands_are_found():
    text = "```bash\ncinema-fast prepare A B --motion   # then\ntorchrun -m cinema_fast pretrain \\\n --out X\n```\n"
    assert commands(text) == [["prepare", "A", "B", "--motion"], ["pretrain", "--out", "X"]]
    assert {"--motion", "--repair"} <= options("prepare") and "--out" not in options("prepare")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_scripts_and_targets_of_a_page(page):
    """Every script that a page runs exists, and every `make TARGET`; nothing was left to fill in."""
    text = page.read_text()
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for block in re.findall(r"^```(?:bash)?\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        scripts = re.findall(r"python\S* ((?:benchmarks|docs|tests)/\S+\.py)", block)
        assert not [script for script in scripts if not (ROOT / script).exists()]
        assert not {word for line in re.findall(r"^make ([a-z -]+)", block, re.MULTILINE)
                    for word in line.split()} - targets  # fmt: skip
    assert not re.findall(r"^[A-Z]+_[A-Z]+$", text, re.MULTILINE)
