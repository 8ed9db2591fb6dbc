"""Every relative link and picture of a page leads to a file, and every anchor to a heading, as on GitHub."""

import re
from pathlib import Path

import pytest
from machine import ROOT

FOLDERS = ("benchmarks", "cinema_fast", "csrc", "docs", "kernels", "tests")
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(page for name in FOLDERS for page in (ROOT / name).rglob("*.md"))]
LINK = re.compile(r"""\]\(\s*([^)\s]+)|<(?:a|img)\b[^>]*?(?:href|src)=["']([^"']+)""")


def prose(text: str) -> str:
    """A page without its code, which may look like a link."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"`[^`\n]*`", "`", text)


def anchors(page: Path) -> set[str]:
    """Of the headings of a page."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    found: dict[str, int] = {}
    for heading in re.findall(r"^#+ +(.*?) *$", text, re.MULTILINE):
        name = re.sub(r"[^\w\- ]", "", re.sub(r"\]\([^)]*\)", "", heading).lower()).replace(" ", "-")
        found[name] = found.get(name, -1) + 1
    return {name + f"-{n}" * bool(n) for name, count in found.items() for n in range(count + 1)}


def broken(page: Path, text: str) -> list[str]:
    """The links of a page's text that lead nowhere."""
    wrong = []
    for link in (one or other for one, other in LINK.findall(prose(text))):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            wrong.append(link)
    return wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_a_page(page):
    assert broken(page, page.read_text()) == []


def test_what_leads_nowhere_is_found(tmp_path):
    (tmp_path / "there.md").write_text("# A `title`, [linked](x)\n\n```\n# no title\n```\n## Twice\n## Twice\n")
    page = tmp_path / "page.md"
    good = "[a](there.md) [b](there.md#a-title-linked) ![c](there.md#twice-1) [d](https://x.org/y) `[e](none.md)`"
    assert broken(page, good) == []
    bad = '[a](none.md) [b](there.md#no-title) [c](there.md#twice-2) ![d](none.png) <img src="none.svg">'
    assert broken(page, bad) == ["none.md", "there.md#no-title", "there.md#twice-2", "none.png", "none.svg"]
