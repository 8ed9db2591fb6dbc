"""The pages' figures are those of the results files, and say when they are of another version of a kernel."""

import json
import re
import subprocess
import sys
from statistics import median

import pytest
import readme_tables
from checkout import ROOT
from report_schema import kernel_sha

from cinema_fast.kernels import OPERATIONS

PAGE = """before
<!-- cpu -->old<!-- /cpu -->
| other | row |
"""


def kernel(pass_, us, sha, peer=None, speedup=None):
    row = {"op": "masked_mse", "pass": pass_, "shape": "a", "dtype": "bf16", "us": us, "percent_of_limit": 71.6}
    return row | {"peer": peer, "speedup": speedup, "kernel_sha": sha}


def report(date, *rows):
    return {"device": "GPU X", "date": date, "kernels": list(rows)}


@pytest.fixture
def cpu():
    return json.loads(max((ROOT / "benchmarks" / "results").glob("cpu-*.json")).read_text())


def test_the_pages_hold_the_newest_results():
    done = subprocess.run([sys.executable, ROOT / "benchmarks" / "readme_tables.py", "--check"])
    assert done.returncode == 0, "run: python benchmarks/readme_tables.py"


def test_cells_of_kernels():
    now = kernel_sha("masked_mse")
    old = report("2026-01-02T0", kernel("fwd", 99.0, now))
    new = report("2026-03-04T0", kernel("fwd", 12.4, now, "compiled peer", 1.84), kernel("bwd", 20.0, now))
    text = readme_tables.kernels_section([old, new])
    rows = {line.split("`")[1]: line for line in text.splitlines() if line.startswith("| [")}
    assert list(rows) == list(OPERATIONS)
    assert rows["masked_mse"] == (
        "| [`masked_mse`](../../kernels/masked_mse.py) | loss against the image's own pixels, no patchified copy, "
        "fixed summation order | fwd, bwd | triton, torch | GPU X, 2026-03-04: fwd 12 us (a, bf16), 72 % of the limit, "
        "1.8 times as fast as compiled peer; bwd 20 us (a, bf16), 72 % of the limit |"
    )
    assert rows["sample_mask"].endswith(" | fwd | triton, native, torch | not measured on a GPU |")
    assert "/kernels/optical_flow/operation.py)" in rows["optical_flow"]
    for row in rows.values():
        assert all((readme_tables.REFERENCE / path).exists() for path in re.findall(r"\]\(([^)]+)\)", row))
    stale = readme_tables.kernels_section([report("2026-03-04T0", kernel("fwd", 12.4, "0" * 64))])
    assert stale.count("(measured on an earlier version) |") == 1


def test_a_kernel_is_what_it_is_made_of(tmp_path, monkeypatch):
    import report_schema

    imports = ("from . import beside as one, both", "from .backend import choose", "from .part import f")
    (tmp_path / "op.py").write_text("\n".join([*imports, ""]))
    (tmp_path / "part.py").write_text("from .deeper import (\n    g,\n)\n")
    for name in ("deeper", "backend", "registry", "other", "beside", "both"):
        (tmp_path / f"{name}.py").write_text("")
    monkeypatch.setitem(report_schema.PACKAGES, "cinema_fast.kernels", tmp_path)
    before = kernel_sha("op")
    unused, used = ("backend", "registry", "other"), ("beside", "both", "deeper", "part", "op")
    for name, counts in {**dict.fromkeys(unused, False), **dict.fromkeys(used, True)}.items():
        with (tmp_path / f"{name}.py").open("a") as file:
            file.write("# changed\n")
        assert (kernel_sha("op") != before) == counts
        before = kernel_sha("op")
    with (tmp_path / "op.py").open("a") as file:
        file.write("# Registration\nregister()\n")
    assert kernel_sha("op") == before


def test_a_kernel_in_a_folder_is_all_of_it(tmp_path, monkeypatch):
    import report_schema

    monkeypatch.setitem(report_schema.PACKAGES, "cinema_fast.kernels", tmp_path)
    texts = {
        "other.py": "from .op.inner import f\n",
        "op/__init__.py": "from .inner import f\nfrom ..backend import choose\n",
        "op/inner.py": "from ..part import g\nfrom ..folder.some import h\n", "op/beside.py": "", "part.py": "",
        "folder/__init__.py": "", "folder/some.py": "", "backend.py": "", "inner.py": "", "some.py": "",
    }  # fmt: skip
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    for op, unused in (("op", {"other.py"}), ("other", set())):
        for name in texts:
            before = kernel_sha(op)
            with (tmp_path / name).open("a") as file:
                file.write("# changed\n")
            assert (kernel_sha(op) != before) == (name not in unused | {"backend.py", "inner.py", "some.py"})


def test_section_of_the_cpu(cpu):
    section = readme_tables.cpu_section(cpu)
    first = cpu["speedups"][0]
    assert f"**{first['speedup']:.2f}** ({first['low']:.2f}-{first['high']:.2f})" in section
    assert f"| {cpu['memory'][1]['ratio']:.2f} |" in section and cpu["conditions"]["commit"][:7] in section
    brief = readme_tables.brief_section(cpu)
    assert f"| fp32 | fp32 | **{first['speedup']:.2f}** | {cpu['memory'][0]['ratio']:.2f} |" in brief
    ratio = median(cpu["seconds"]["ours bf16"]) / median(cpu["seconds"]["ours fp32"])
    assert f"bf16 takes {ratio:.2f} times the time of fp32" in brief


def test_section_of_self_distillation():
    rows = [{"ours": "a", "reference": "b", "speedup": 1.234, "low": 1.0, "high": 2.0, "target": 1.3}]
    found = {
        "preset": "p", "seconds": {"a": [2.0, 9.0, 1.0], "b": [3.0, 3.0, 3.0], "plain fp32": [1.0, 3.0, 9.0]},
        "speedups": rows, "memory": [{"ours": "a", "reference": "b", "ratio": 0.456}],
        "parts": {"a": {"attention": 0.5, "other products": 1.0, "rest": 0.5}},
    }  # fmt: skip
    about = {"batch": 2, "step": "all of it", "rounds": 3, "cpu": "A(R) B", "threads": 2, "date": "2030-01-31T2359"}
    about |= {"versions": {"torch": "9"}, "commit": "0123456789"}
    lines = readme_tables.dino_section({"conditions": about, "presets": [found]}).splitlines()
    assert lines[2] == "| p | a | b | 2.000 | 3.000 | **1.23** (1.00-2.00) | 0.46 |"
    assert "3 rounds in turn" in lines[-3] and lines[-3].endswith("commit 0123456, 2030-01-31.")
    assert lines[-1].startswith("- p, a: attention 25%, other products 50%, rest 25%; ")
    assert "2.00 times as fast as plain fp32" in lines[-1]  # 3 s against three quarters of 2 s


def test_sections_of_reading_and_of_few_labels():
    ways = {"cinema-fast": 800.0, "nibabel": 10.4, "another": 20.0}
    rates = {("cold", "read"): 1.0, ("warm", "read"): 2.0, ("cold", "read and augment"): 0.5}
    rows = [
        {"cache": cache, "task": task, "way": way, "frames_per_s": rate * factor}
        for (cache, task), factor in rates.items() for way, rate in ways.items()
    ]  # fmt: skip
    reading = {"conditions": {"cpu": "A(R) B", "commit": "0123456789", "date": "2030-01-31T2359"}, "rows": rows}
    lines = readme_tables.reading_section(reading).splitlines()
    assert lines[0] == "| frames/s | cinema-fast | nibabel | another |"
    assert lines[2:5] == [
        "| read, cold | 800 | 10.4 (77) | 20.0 (40) |", "| read, warm | 1600 | 20.8 (77) | 40.0 (40) |",
        "| read and augment, cold | 400 | 5.2 (77) | 10.0 (40) |",
    ]  # fmt: skip
    assert lines[-1] == "A B, one thread, commit 0123456, 2030-01-31."
    table = "\n\n| labelled hearts | scratch | seeds | pre-trained | seeds | difference |\n| --- | --- |\n"
    labels = "".join(
        f"### EF {how}, MAE [points]{table}| 72 | {scratch} (1.0 to 9.9) | 3 | {pretrained} (1 to 2) | 3 | x |\n"
        f"| 10 | 7.7 (7.1 to 7.9) | 3 | 8.8 (8 to 9) | 3 | x |\n\n"
        for how, scratch, pretrained in (("measured by segmentation", 2.09, 1.56), ("by regression", 3.25, 4.71))
    )
    rows = [
        {"ours": f"ours {ours}", "reference": f"plain {plain}", "speedup": x, "ratio": y}
        for ours, plain, x, y in (
            ("bf16", "fp32", 2.14, 0.372), ("fp32", "fp32", 1.094, 0.51), ("bf16", "bf16", 1.06, 0.7)
        )
    ]  # fmt: skip
    small8 = {"preset": "cmrfm-small8", "speedups": rows, "memory": rows}
    dino = {"conditions": {"cpu": "C(R) D", "threads": 3}, "presets": [small8]}
    text = readme_tables.findings_section(reading, labels, dino)
    assert "1.09 times as fast as plain PyTorch in fp32, 1.06 times in bf16,\nand 2.14 times from" in text
    assert "memory is 0.51 and 0.37 of plain fp32" in text
    assert "(C D, 3 threads)" in text
    assert "is 77 times as fast" in text and "is 1.6 points with pre-training and 2.1 without;" in text
    assert text.endswith("of EF by regression, 4.7 with and 3.2 without.")


def test_a_section_is_replaced():
    text = readme_tables.with_section(PAGE, "cpu", "| new |")
    assert text.splitlines() == ["before", "<!-- cpu -->", "| new |", "<!-- /cpu -->", "| other | row |"]
    assert readme_tables.with_section(text, "cpu", "| new |") == text
    with pytest.raises(SystemExit, match="missing"):
        readme_tables.with_section("no markers", "cpu", "")
