"""Every tutorial runs as it stands on its page."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TUTORIALS = Path(__file__).resolve().parents[2] / "docs" / "tutorials"
PAGES = ("pretrain", "finetune", "predict", "kernel", "encoder")
NEEDS = {"pretrain": ("pyarrow",), "finetune": ("jinja2",), "kernel": ("triton", "pytest_benchmark")}
REAL_STUDY = {"sax": "sax_4d_6slices", "lax_2c": "Se8_2ch", "lax_3c": "Se7_4ch_or_3ch", "lax_4c": "Se6_4ch_or_3ch"}

pytestmark = pytest.mark.long


def run(page: str, folder: Path, **environment: str) -> None:
    """Run a page in a new folder; where it fails, its output is shown."""
    environment = {name: value for name, value in os.environ.items() if name != "SCANS"} | environment
    command = [sys.executable, TUTORIALS / "run.py", TUTORIALS / f"{page}.md", "--out", folder]
    ended = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert ended.returncode == 0, f"{ended.stdout[-6000:]}"


def test_every_page_is_tested():
    assert sorted(PAGES) == sorted(path.stem for path in TUTORIALS.glob("*.md"))


@pytest.mark.parametrize("page", PAGES)
def test_a_page_runs(page, tmp_path):
    for module in NEEDS.get(page, ()):
        pytest.importorskip(module)
    run(page, tmp_path / "work")


def test_a_real_study_is_predicted(tmp_path, shared):
    if not (shared / "data" / "cine").exists():
        pytest.skip("../shared/data/cine, a real study, is not beside this checkout")
    scans = tmp_path / "scans"
    scans.mkdir()
    for view, name in REAL_STUDY.items():
        (scans / f"real_{view}.nii.gz").symlink_to((shared / "data" / "cine" / f"{name}.nii.gz").resolve())
    run("predict", tmp_path / "work", SCANS=str(scans))
    assert (tmp_path / "work" / "out" / "studies" / "real" / "sax_labels.nii.gz").exists()
    slices = shared / "data" / "cine" / "dicom_Se11_slim"
    command = [sys.executable, "-m", "cinema_fast", "predict", "seg", slices.resolve(), "dicom"]
    ended = subprocess.run(command, cwd=tmp_path / "work", stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert ended.returncode == 0, ended.stdout


def test_the_runner_stops_at_the_first_block_that_fails(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```bash\nexport HEART=42\n```\n\n```python\nimport os\nx = os.environ['HEART']\n```\n\n"
                    "```text\nno command\n```\n```python\nprint(x)\n1 / 0\n```\n```bash\necho not reached\n```\n")
    command = [sys.executable, TUTORIALS / "run.py", page]
    ended = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert ended.returncode == 1 and "\n42\n" in ended.stdout and "not reached" not in ended.stdout
    assert "page.md:13: the python block failed at line 15: ZeroDivisionError" in ended.stdout
    page.write_text("![a heart](pictures/page/heart.png)\n\n```bash\nfalse | true\n```\n")
    assert "ended with exit status 1" in subprocess.run(command, stderr=subprocess.PIPE, text=True).stderr
    page.write_text("![a heart](pictures/page/heart.png)\n\n```bash\ntrue\n```\n")
    assert "page.md shows heart.png" in subprocess.run(command, stderr=subprocess.PIPE, text=True).stderr
