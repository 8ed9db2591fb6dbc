"""The sdist and the wheel as a user gets them: built, installed into an empty environment, used from elsewhere."""

import subprocess
import sys
import tarfile
import zipfile

import pytest
import torch
from machine import ROOT

TUNED = "kernels/tuned/some-gpu.json"

TRAINING_STEP = """
import torch, cinema_fast as cf
config = cf.preset("cinema-tiny")
model = cf.CineMA(config)
images = {v: torch.rand(1, 1, *config.image_size[v]) for v in ("lax_2c", "lax_4c")}
plan = {v: cf.sample_mask(batch=1, n=config.n_tokens(v), keep=64, seed=0, stream=i) for i, v in enumerate(images)}
loss = model(images, plan).loss
loss.backward()
torch.optim.AdamW(model.parameters()).step()
print(cf.__file__, float(loss))
"""


def run(*command, cwd, **kwargs):
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, **kwargs)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """Folder with an sdist of the tracked files and a table of tuned kernels, and the wheel built from that sdist."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: which files belong to the project is not known")
    tracked = run("git", "ls-files", "-z", cwd=ROOT).split("\0")
    for name in filter(None, tracked):
        if (ROOT / name).exists():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    tuned = source / TUNED
    tuned.parent.mkdir(exist_ok=True)
    tuned.write_text("{}")
    run(sys.executable, "-m", "build", "-q", "--outdir", out, source, cwd=source)
    return out


@pytest.mark.slow
def test_sdist_and_wheel_hold_every_module(dist):
    modules = {f"cinema_fast/{p.relative_to(ROOT / 'cinema_fast')}" for p in (ROOT / "cinema_fast").rglob("*.py")}
    modules |= {f"cinema_fast/kernels/{p.relative_to(ROOT / 'kernels')}" for p in (ROOT / "kernels").rglob("*.py")}
    modules |= {f"cinema_fast/{p.relative_to(ROOT / 'cinema_fast')}" for p in (ROOT / "cinema_fast").rglob("*.j2")}
    modules.add("cinema_fast/data/formats/view_rules.yaml")
    modules.add(f"cinema_fast/{TUNED}")
    (wheel,) = dist.glob("*.whl")
    assert modules <= set(zipfile.ZipFile(wheel).namelist())
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[-1] for name in archive.getnames()}
    sources = {f"csrc/{path.name}" for path in (ROOT / "csrc").iterdir() if path.suffix != ".md"}
    assert {"LICENSE", "README.md", "pyproject.toml", "setup.py", "kernels/sample_mask.py", *sources} <= names


@pytest.mark.slow
def test_wheel_in_an_empty_environment(dist, tmp_path):
    environment, elsewhere = tmp_path / "venv", tmp_path / "elsewhere"
    elsewhere.mkdir()
    run(sys.executable, "-m", "venv", environment, cwd=tmp_path)
    python = environment / "bin" / "python"
    # the same torch as here, so that a CPU build stays one
    run(python, "-m", "pip", "install", "-q", f"torch=={torch.__version__}", cwd=elsewhere)
    run(python, "-m", "pip", "install", "-q", *dist.glob("*.whl"), cwd=elsewhere)
    info = run(environment / "bin" / "cinema-fast", "info", cwd=elsewhere)
    assert torch.__version__ in info
    printed = run(python, "-c", TRAINING_STEP, cwd=elsewhere)
    assert str(environment) in printed
