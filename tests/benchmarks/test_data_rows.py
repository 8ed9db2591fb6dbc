"""The rows of the loaders in a GPU report: set against the step of the same report, and kept to a few cores."""

import json
import os
import subprocess
import sys

import bench_data
import pytest
from report_schema import DataRow, Report, StepRow

LOADER = {"loader": "torch", "batch": 64, "workers": 4, "cores": 4, "augmentation_ms": 1.0, "transfer_ms": None}


def step(studies_per_s: float, preset: str) -> StepRow:
    ms = 1e3 * 64 / studies_per_s
    return StepRow(preset, 64, "bf16", "eager", 1.0, ms, studies_per_s, None, None, None, None, None)


@pytest.mark.parametrize("first", ["step", "data"])
def test_a_loader_is_set_against_the_fastest_step_of_its_model(tmp_path, first):
    report = Report(tmp_path / "r.json", "a GPU", "2030", {}, "c", {}, False, [])
    steps = [step(200.0, "cinema-base"), step(250.0, "cinema-base"), step(900.0, "cinema-tiny")]
    loaders = [DataRow(preset="cinema-base", studies_per_s=600.0, **LOADER)]
    for row in [*steps, *loaders] if first == "step" else [*loaders, *steps]:
        report.add(row.name, row)
    (found,) = json.loads(report.path.read_text())["data"]
    assert found["times_step"] == pytest.approx(600 / 250)
    assert "| torch | 64 | 4 | 4 | 600 | 2.4 | 1.00 |  |" in report.table()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")
def test_cores_are_those_that_a_loader_may_use():
    """In this process, and in one that it starts meanwhile, and again all of them afterwards."""
    before = os.sched_getaffinity(0)
    ask = "import os; print(len(os.sched_getaffinity(0)))"
    with bench_data.at_most(1) as cores:
        child = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True)
        assert cores == len(os.sched_getaffinity(0)) == int(child.stdout) == 1
    assert os.sched_getaffinity(0) == before
    with bench_data.at_most(len(before) + 3) as cores:
        assert cores == len(before)
