"""`evaluate` and `predict` of landmark runs: the function along the line from annulus to apex."""

import csv
import json

import numpy as np
import pytest
import torch
from cine_files import write_study
from labelled_discs import HEAD, affine_of, write_discs
from prediction_cases import lines_of, predict_as, stand_in
from torch import nn

from cinema_fast.common.tables import read_landmarks
from cinema_fast.data.store.store import CineStore
from cinema_fast.metrics.assessment import Assessment
from cinema_fast.metrics.long_axis import AXIS
from cinema_fast.tasks.context import EvaluationData
from cinema_fast.tasks.landmarks import Landmarks

NAMES = ("annulus_1", "annulus_2", "apex", "middle")
START = np.array([[8.0, 6.0], [20.0, 6.0], [14.0, 26.0], [14.0, 14.0]])  # pixels of the view, in the order of NAMES
SIZE = 64


class Beating(nn.Module):
    """Landmarks that move by `down` pixels along y in each frame but the first, up to the apex, which rests."""

    def __init__(self, down: float):
        super().__init__()
        self.down, self.seen = down, 0

    def forward(self, images):
        ((_, image),) = images.items()
        t = self.seen + torch.arange(len(image))
        self.seen += len(image)
        return points(t.numpy(), self.down).flatten(1) / SIZE


def points(t: np.ndarray, down: float) -> torch.Tensor:
    """(B, landmarks, 2) float64 pixels of frames t (B,)."""
    at = np.repeat(START[None], len(t), 0)
    at[:, :2, 1] += down * np.minimum(t, 2)[:, None]
    return torch.from_numpy(at)


def run_of(down: float, grid=None):
    task = Landmarks(NAMES, "coordinates", ("lax_4c",), {"lax_4c": NAMES}, "0")
    return stand_in(task, Beating(down), grid or {}, {"lax_4c": (SIZE, SIZE)})


@pytest.mark.parametrize(("frames", "lacks"), [((0, 1, 2), ()), ((0, 2), ()), ((2,), ()), ((0, 2), ("apex",))])
def test_evaluated_at_the_labelled_frames(tmp_path, frames, lacks):
    store = CineStore(write_discs(tmp_path / "store", 1, views=("lax_4c",)))
    lines = [HEAD]
    for t in frames:
        for name, at in zip(NAMES, points(np.array([t]), 3.0)[0].numpy()):
            if name not in lacks or t == 0:
                mm = affine_of("lax_4c") @ [*at, 0, 1]
                lines.append(f"s00,lax_4c,{t},{name},{mm[0]:.6f},{mm[1]:.6f},{mm[2]:.6f}")
    table = tmp_path / "points.csv"
    table.write_text("\n".join(lines) + "\n")
    run, made = run_of(2.0), Assessment(resamples=10)
    data = EvaluationData(store, ("s00",), table, None, {}, None, None)
    assert run.task.evaluator(run, data, made)("s00") == {}
    found = {row["name"]: (row["pred"], row["truth"]) for row in made.rows if row["kind"] == "long_axis"}
    assert len([row for row in made.rows if row["kind"] == "landmarks"]) == 4 * len(frames) - len(lacks)
    if lacks or len(frames) < 2:
        assert not found
        return
    mm = 1.2  # of a pixel along y
    # the run predicts the labelled frames one after another, so its first two or three
    pred, true = 2 * (len(frames) - 1) * mm, 6 * mm
    assert found["mapse_mm"] == pytest.approx((pred, true), abs=1e-4)
    assert found["shortening_mm"] == pytest.approx((pred, true), abs=1e-4)
    assert found["longest_mm"] == pytest.approx((20 * mm, 20 * mm), abs=1e-4)
    assert found["gls"] == pytest.approx((-100 * pred / (20 * mm), -100 * true / (20 * mm)), abs=1e-3)


def test_predicted_over_the_cycle(monkeypatch, tmp_path):
    """As it follows from the positions in scanner mm that are written beside it."""
    write_study(tmp_path / "src", "p", ("lax_4c",))
    grid = {"lax_size": (SIZE, SIZE), "lax_spacing": (1.0, 1.0), "sax_size": (8, 8, 8), "sax_spacing": (1.0, 1.0, 8.0),
            "orientation": "patient"}  # fmt: skip
    out = tmp_path / "out"
    assert predict_as(monkeypatch, run_of(2.5, grid), tmp_path / "src", out).exit_code == 0
    known = read_landmarks(out / "landmarks.csv")["p"]["lax_4c"]
    mm = {name: np.array([known[t][name] for t in sorted(known)]) for name in AXIS}
    (row,) = lines_of(out / "studies.csv")
    view = json.loads((out / "results.json").read_text())["studies"]["p"]["views"]["lax_4c"]
    # moved by 2.5 pixels of 1 mm in frames 1 and 2, from a length of 20
    wanted = {"longest_mm": 20, "shortest_mm": 15, "shortening_mm": 5, "mapse_mm": 5, "gls": -25}
    assert {name: float(row[f"lax_4c_{name}"]) for name in wanted} == pytest.approx(wanted, abs=1e-3)
    assert {name: view[name] for name in wanted} == pytest.approx(wanted, abs=1e-3)
    moved = [np.linalg.norm(mm[name][0] - mm[name][2]) for name in AXIS[:2]]
    assert view["mapse_mm"] == pytest.approx(np.mean(moved), abs=1e-3)
    with (out / "studies.csv").open(newline="") as file:
        assert next(csv.reader(file)) == ["study", "flags", "landmarks", *(f"lax_4c_{name}" for name in wanted)]
