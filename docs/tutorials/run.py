"""Run the blocks of a tutorial as they stand on its page.

    python docs/tutorials/run.py docs/tutorials/pretrain.md [--out FOLDER] [--pictures]

Blocks of ```bash and ```python run in the order of the page, in one working folder. A bash block runs with
`bash -euo pipefail`; what it exports is there in all later blocks. Python blocks share one namespace, a module of this
process. Other blocks are not run. The first block that fails ends the run; its output stands above the message.
Every picture of the page, `pictures/PAGE/PATH`, must be a file PATH of the working folder at the end.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

PICTURES = Path(__file__).resolve().parent / "pictures"
LARGEST = 100_000  # bytes of a picture


class Block(NamedTuple):
    """A fenced block: its language, the line of its fence, and what it holds."""

    language: str
    line: int
    text: str


class PageError(Exception):
    """A block failed, or a picture of the page was not made."""


def blocks(page: str) -> list[Block]:
    """The blocks of a page that run."""
    found = re.finditer(r"^```(bash|python)\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    return [Block(match[1], page.count("\n", 0, match.start()) + 1, match[2]) for match in found]


def pictures(page: Path) -> list[str]:
    """Paths in the working folder of the pictures that a page shows."""
    return re.findall(rf"!\[[^]]*\]\(pictures/{page.stem}/([^)]+)\)", page.read_text(encoding="utf-8"))


def run_bash(block: Block, where: str) -> None:
    """Run it in the current folder, and take over what it exports."""
    with tempfile.NamedTemporaryFile() as exported:
        script = f"{block.text}\nenv -0 > {exported.name}"
        status = subprocess.run(["bash", "-euo", "pipefail", "-c", script]).returncode
        if status:
            raise PageError(f"{where}: the bash block ended with exit status {status}")
        for entry in exported.read().decode(errors="surrogateescape").split("\0"):
            name, is_set, value = entry.partition("=")
            if is_set:
                os.environ[name] = value


def run_python(block: Block, page: Path, where: str, namespace: dict) -> None:
    """Run it in the namespace; its lines have the numbers that they have on the page, also where source is read back
    (a traceback, triton.jit)."""
    try:
        exec(compile("\n" * block.line + block.text, str(page), "exec"), namespace)
    except BaseException as error:
        traceback.print_exc()
        line = next((n for frame, n in traceback.walk_tb(error.__traceback__) if frame.f_code.co_filename == str(page)),
                    block.line)
        raise PageError(f"{where}: the python block failed at line {line}: {type(error).__name__}: {error}") from error


def run_page(page: Path, folder: Path) -> None:
    """Run every block of a page in a folder. Raises PageError at the first that fails."""
    found = blocks(page.read_text(encoding="utf-8"))
    os.chdir(folder)
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    module = sys.modules["tutorial"] = ModuleType("tutorial")
    for n, block in enumerate(found, 1):
        where, began = f"{page.name}:{block.line}", time.perf_counter()
        print(f"--- {where}: {block.language} block {n} of {len(found)}\n{block.text}---", flush=True)
        if block.language == "bash":
            run_bash(block, where)
        else:
            run_python(block, page, where, vars(module))
        sys.stdout.flush()
        print(f"--- {where}: {time.perf_counter() - began:.1f} s", flush=True)
    for picture in pictures(page):
        if not (folder / picture).is_file():
            raise PageError(f"{page.name} shows {picture}, which none of its blocks has written")


def copy_pictures(page: Path, folder: Path) -> None:
    """Copy the page's pictures beside it. Raises PageError where one is too large."""
    for picture in pictures(page):
        if (size := (folder / picture).stat().st_size) > LARGEST:
            raise PageError(f"{picture} has {size} bytes, more than {LARGEST}")
        target = PICTURES / page.stem / picture
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / picture, target)
        print(f"{target}: {size} bytes")


def main() -> int:
    """Exit status: 0, or 1 where a block failed."""
    parser = argparse.ArgumentParser(description="Run the blocks of a tutorial as they stand on its page.")
    parser.add_argument("page", type=Path)
    parser.add_argument("--out", type=Path, help="working folder, new or empty, which is kept; else a temporary one")
    parser.add_argument("--pictures", action="store_true", help="copy the pictures that the page shows beside it")
    options = parser.parse_args()
    page, began = options.page.resolve(), time.perf_counter()
    if options.out and options.out.exists() and any(options.out.iterdir()):
        parser.error(f"{options.out} is not empty")
    with tempfile.TemporaryDirectory(prefix=f"{page.stem}-") as temporary:
        folder = options.out or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        folder = folder.resolve()
        try:
            run_page(page, folder)
            if options.pictures:
                copy_pictures(page, folder)
        except PageError as error:
            print(error, file=sys.stderr)
            return 1
        finally:
            os.chdir(page.parent)  # away from a folder that goes
    print(f"{page.name}: {time.perf_counter() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
