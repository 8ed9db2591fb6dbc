"""What mkdocs adds while it builds the site: pages from files outside docs/, links to such files, help texts.

The start page is README.md, and `contributing.md` is CONTRIBUTING.md. Any other file of the repository that a page
links to is copied to `source/`, so that the site needs no network. In the repository every page links to files as they
lie there; the links are changed here. `reference/cli.md` gets the help text of each command under its heading.
"""

import io
import logging
import os
import re
from contextlib import redirect_stdout, suppress
from pathlib import Path
from unittest import mock

from mkdocs.structure.files import File

from cinema_fast import cli

ROOT, SOURCE = Path(__file__).resolve().parents[1], "source/"
OUTSIDE = {"index.md": "README.md", "contributing.md": "CONTRIBUTING.md"}  # {page of the site: file of the repository}
COMMAND = re.compile(r"^## ([a-z]+)\n\n.+\n", re.MULTILINE)  # in reference/cli.md
LINK = re.compile(r"\]\(([^)\s#:]+)(#[^)\s]*)?\)")

# what only reads kernels/__init__.py cannot know the names in OPERATIONS; reference/api.md names them
logging.getLogger("mkdocs.plugins.griffe").addFilter(lambda record: "kernels.__all__" not in record.getMessage())


def on_files(files, config):
    """Add pages and files that are not in docs/."""
    for page, file in OUTSIDE.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / file)))
    for file in list(files.documentation_pages()):
        for target, _ in LINK.findall(file.content_string):
            uri = uri_of(target, file.src_uri)
            if uri and uri.startswith(SOURCE) and files.get_file_from_path(uri) is None:
                files.append(File.generated(config, uri, abs_src_path=str(ROOT / uri.removeprefix(SOURCE))))
    return files


def on_page_markdown(markdown, page, config, files):
    """Turn links between files of the repository into links between pages of the site, and add the help texts."""
    here = page.file.src_uri
    if here == "reference/audit.md":
        page.meta["search"] = {"exclude": True}  # thousands of figures
    if here == "reference/cli.md":
        markdown = COMMAND.sub(lambda found: f"{found[0]}\n{help_of(found[1])}\n", markdown)

    def moved(link):
        uri = uri_of(link[1], here)
        return f"]({os.path.relpath(uri, os.path.dirname(here) or '.')}{link[2] or ''})" if uri else link[0]

    return LINK.sub(moved, markdown)


def uri_of(target: str, page: str) -> str | None:
    """Where the site has what a page links to; None where the repository has no such file."""
    at = ROOT / OUTSIDE.get(page, page.removeprefix(SOURCE) if page.startswith(SOURCE) else f"docs/{page}")
    path = (at.parent / target).resolve()
    if not path.is_file() or not path.is_relative_to(ROOT):
        return None
    file = path.relative_to(ROOT).as_posix()
    if file.startswith("docs/"):
        return file.removeprefix("docs/")
    return next((uri for uri, outside in OUTSIDE.items() if outside == file), SOURCE + file)


def help_of(command: str) -> str:
    """What `cinema-fast COMMAND --help` prints, without frames, as a block of text."""
    out = io.StringIO()
    with mock.patch.dict(os.environ, COLUMNS="104"), redirect_stdout(out), suppress(SystemExit):
        cli.main([command, "--help"])
    lines = (re.sub(r"^[╭╰]─* ?(.*?) ?─*[╮╯]$", r"\1", line) for line in out.getvalue().splitlines())
    text = "\n".join(re.sub(r"^│ ?(.*?)\s*│$", r"\1", line).rstrip() for line in lines).strip()
    return f"```text\n{text}\n```"
