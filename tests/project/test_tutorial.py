"""The commands of README.md and docs/ on synthetic hearts do with these hearts what they should."""

import re
import shlex

import pytest
from machine import ROOT

from cinema_fast.data.prepare.prepare import PrepareConfig, prepare
from cinema_fast.phantom.cohort import write_cohort

SHAPING = {"--sax-size": int, "--lax-size": int, "--sax-spacing": float, "--lax-spacing": float}


def prepare_commands() -> list[tuple[str, dict]]:
    """(pages, options that shape the frames) of every prepare of synthetic hearts, with their number as `n`."""
    found = []
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        for block in re.findall(r"```\w*\n(.*?)```", page.read_text().replace("\\\n", " "), re.DOTALL):
            hearts = re.search(r"cinema-fast phantom .*--n (\d+)", block)
            for line in re.findall(r"cinema-fast prepare .*", block) if hearts else ():
                words, options = shlex.split(line, comments=True), {"n": int(hearts[1])}
                for n, word in enumerate(words):
                    if kind := SHAPING.get(word):
                        values = [kind(value) for value in words[n + 1 : n + 4] if re.fullmatch(r"[\d.]+", value)]
                        options[word[2:].replace("-", "_")] = tuple(values)
                found.append((page.name, options))
    return found


@pytest.mark.slow
def test_no_crop_of_a_page_cuts_a_heart(tmp_path):
    commands = prepare_commands()
    assert "finetuning.md" in [page for page, _ in commands]
    # who is drawn depends on the seed alone: two frames and large pixels show as well how large a heart is
    write_cohort(tmp_path / "hearts", max(options["n"] for _, options in commands), 0, n_frames=2, in_plane_mm=4.0)
    for n, (page, options) in enumerate(commands):
        hearts = options.pop("n")
        config = PrepareConfig(tmp_path / "hearts", tmp_path / str(n), labels="labels/{id}_{view}.nii.gz", workers=1,
                               **options)
        report = prepare(config, progress=False)
        assert report.cut == [] and report.labelled >= hearts, f"{page}: {report}"
