"""The documentation site is built without a warning, needs no network, and names what is public."""

import importlib.util
import os
import re
import subprocess
import sys

import pytest
from machine import ROOT

import cinema_fast
from cinema_fast import cli, kernels
from cinema_fast.common.checks import flag
from cinema_fast.common.renamed import RENAMED

MISSING = [name for name in ("mkdocs", "material", "mkdocstrings") if importlib.util.find_spec(name) is None]
OF_NO_VISITOR = r'<a [^>]*href="https?:[^"]*"|xmlns(:\w+)?="[^"]*"'  # links are followed by people alone


@pytest.mark.long
@pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)} (extra docs)")
def test_the_site_is_built_without_a_warning(tmp_path):
    site, environment = tmp_path / "site", os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    commands = (site / "reference" / "cli.html").read_text()
    assert commands.count("usage: cinema-fast") == len(cli._commands())
    assert "--decode-ratio FLOAT" in commands and "(default: 0.75)" in commands
    names = (site / "reference" / "api.html").read_text()
    assert "Draw the visible and the masked tokens" in names
    assert (site / "source" / "kernels" / "masked_mse.py").read_text() == (ROOT / "kernels/masked_mse.py").read_text()
    for page in site.rglob("*.html"):
        loaded = re.sub(OF_NO_VISITOR, "", page.read_text())
        assert not re.findall(r'(?:src|href)="https?:[^"]*', loaded), page


def test_the_reference_names_what_is_public():
    text = (ROOT / "docs" / "reference" / "api.md").read_text()
    named = set(re.findall(r"^::: .*\.(\w+)$", text, re.MULTILINE))
    assert set(cinema_fast.__all__) <= named
    assert set(kernels.__all__) - {"OPERATIONS"} <= named


def test_the_command_line_has_all_commands_and_renamed_options():
    text = (ROOT / "docs" / "reference" / "cli.md").read_text()
    assert re.findall(r"^## ([a-z]+)$", text, re.MULTILINE) == list(cli._commands())
    rows = [re.findall(r"`(.+?)`", line) for line in text.partition("## Renamed options")[2].splitlines()]
    assert sorted((command, *row[-2:]) for row in rows for command in row[:-2]) == sorted(
        (command, flag(old), flag(new)) for command, names in RENAMED.items() for old, new in names.items()
    )


def test_the_readme_names_all_commands():
    cells = re.findall(r"^\| (`.*?) \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert {name.split()[0] for cell in cells for name in re.findall(r"`(.+?)`", cell)} == set(cli._commands())
