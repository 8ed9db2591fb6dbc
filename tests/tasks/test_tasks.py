"""A task is one file: what this one defines is learnt, judged and predicted by the commands as they are."""

import ast
import csv
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from cine_files import write_cine
from labelled_discs import QUICK, affine_of, drawn, write_discs
from machine import ROOT

from cinema_fast.evaluation.compare_evaluations import compare_evaluations
from cinema_fast.metrics.rows import read_rows
from cinema_fast.metrics.score_kind import ScoreKind
from cinema_fast.tasks.context import StudyPrediction, Tables
from cinema_fast.tasks.finetune_config import TaskName
from cinema_fast.tasks.networks import vit_of
from cinema_fast.tasks.registry import TASKS, task_class, task_from_dict
from cinema_fast.tasks.task import Task, TaskSetup, used_of
from cinema_fast.train.setup import fit_to_store

DARKNESS = ScoreKind("darkness", "Darkness", "How dark the images are.", worst="error",
                     badness=lambda row: row["error"])  # fmt: skip


class DarknessLabels:
    """Of each frame, which is drawn at random: 1 - its mean grey value."""

    def __init__(self, store):
        self._store = store
        self.views_of = {study: store.views(study) for study in store.ids}

    def frames_of(self, study, view, phase):
        return (int(phase * self._store.n_frames(study, view)),)

    def target_of(self, study, shown):
        mean = np.mean([self._store.read_frames(study, view, frames).mean() for view, frames in shown.items()])
        return {"dark": np.array(1 - mean / 255, np.float32)}


@dataclass(frozen=True)
class Darkness(Task):
    """A made-up task, with rows of its own. offset: what is added to predictions."""

    views: tuple[str, ...]
    offset: float

    kind = "darkness"
    n_frames = 1
    fuses_views = True
    score_kinds = (DARKNESS,)

    @classmethod
    def set_up(cls, config, cines, base, split, *, min_frames):
        model_config = fit_to_store(base, cines, config.views, config.preset)
        labels = DarknessLabels(cines)
        used = used_of(config, split.train)
        return TaskSetup(cls(model_config.views, 0.25), labels, model_config, cines, split, used)

    def network(self, model_config, config):
        return vit_of(model_config, 1, 1, config)

    def loss(self, model, batch, cutout):
        return (self.predict(model, batch.images())["dark"] - batch.target["dark"]).square().mean()

    def predict(self, model, images):
        return {"dark": model(images)[:, 0].float() + self.offset}

    def validate(self, model, batches):
        errors = [(self.predict(model, b.images())["dark"] - b.target["dark"]).abs().mean().item() for b in batches]
        return {"score": -float(np.mean(errors))}

    def evaluator(self, run, data, assessment):
        return partial(self._judge, run, DarknessLabels(data.store), data, assessment)

    def _judge(self, run, labels, data, assessment, study):
        views = run.views_of(data.store, study)
        found = float(run.predict_study(data.store, study, views)["dark"])
        right = labels.target_of(study, {view: labels.frames_of(study, view, 0.0) for view in views})["dark"]
        assessment.add(DARKNESS, study, "dark", error=abs(found - right))
        return {"dark": found}

    @property
    def tables(self):
        return Tables(("dark", "flags"), "views.csv", ("study", "view"))

    def export(self, run, store, study, sources):
        views = run.views_of(store, study)
        value = float(run.predict_study(store, study, views)["dark"])
        lines = [{"study": study, "view": view} for view in views]
        return StudyPrediction({"dark": value}, {"dark": value}, lines, {"dark.txt": f"{value:.7g}".encode()})


COMMANDS = """
import sys
from cinema_fast.tasks.registry import TASKS
TASKS["darkness"] = "test_tasks:Darkness"
from cinema_fast.cli import main
folder = sys.argv[1]
for words in (
    "finetune --data {0}/store --out {0}/run --task darkness " + sys.argv[2],
    "evaluate {0}/run {0}/eval --resamples 10",
    "evaluate {0}/run {0}/again --resamples 10 --part val",
    "predict {0}/run {0}/src {0}/out --workers 1",
):
    code = main(words.format(folder).split())
    assert code == 0, (words, code)
"""


@pytest.mark.slow
def test_a_new_task_is_one_file(tmp_path, monkeypatch):
    pytest.importorskip("jinja2")
    write_discs(tmp_path / "store", views=("lax_4c",))
    cine, _ = drawn(3, "lax_4c")
    image = np.moveaxis(cine, 0, -1)[:, :, None].astype(np.int16)
    write_cine(tmp_path / "src" / "new_lax_4c.nii.gz", image, affine_of("lax_4c"), 30.0)
    numbers = {name: value for name, value in QUICK.items() if name in ("preset", "device", "workers", "val", "test")}
    options = " ".join(f"--{name} {value}" for name, value in numbers.items()) + " --steps 2 --validate-every 2"
    folders = (Path(__file__).parent, ROOT / "tests" / "support", ROOT)
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS, str(tmp_path), options], cwd=Path(__file__).parent, capture_output=True,
        text=True, env={"PYTHONPATH": os.pathsep.join(map(str, folders)), "PATH": "", "HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    results, rows = json.loads((tmp_path / "eval/results.json").read_text()), tmp_path / "eval/rows.csv"
    assert results["kinds"] == ["darkness"] and results["about"]["task"] == "darkness"
    (table,) = results["tables"]
    errors = [row["error"] for row in read_rows(rows, ("darkness",))]
    assert len(errors) == 3 and table["numbers"]["error"]["value"] == pytest.approx(np.mean(errors))
    page = (tmp_path / "eval/report/index.html").read_text()
    assert "<h2>Darkness</h2>" in page and "How dark the images are." in page and "Worst cases" in page
    with (tmp_path / "out/studies.csv").open() as file:
        (line,) = csv.DictReader(file)
    assert line["dark"] == (tmp_path / "out/studies/new/dark.txt").read_text() and line["flags"] == ""
    assert (tmp_path / "out/views.csv").read_text().split() == ["study,view", "new,lax_4c"]
    with pytest.raises(ValueError, match=r"results\.json is damaged .*'darkness'; expected one of segmentation"):
        compare_evaluations([tmp_path / "eval", tmp_path / "again"])
    monkeypatch.setitem(TASKS, "darkness", "test_tasks:Darkness")
    with pytest.raises(ValueError, match="no study with the same"):  # of other studies each
        compare_evaluations([tmp_path / "eval", tmp_path / "again"])


@pytest.mark.parametrize("task", [
    Darkness(("sax",), 0.5),
    task_class("segmentation")(("RV", "LV"), ("sax",), "0"),
    task_class("landmarks")(("a", "b"), "heatmap", ("lax_2c",), {"lax_2c": ("a",)}, "0"),
])  # fmt: skip
def test_tasks_come_back_from_plain_values(task, monkeypatch):
    monkeypatch.setitem(TASKS, "darkness", "test_tasks:Darkness")
    assert task_from_dict(json.loads(json.dumps(task.to_dict()))) == task


@pytest.mark.parametrize(("values", "told"), [
    ({"kind": "unheard"}, "unknown task .'unheard'; expected one of segmentation"),
    ({"structures": []}, "unknown task .'kind'"),
    ({"kind": "segmentation", "structures": ["LV"]}, "unknown task .*missing 2 required"),
    ({"kind": "segmentation", "structures": ["LV"], "views": [], "labels_sha256": "0", "more": 1}, "'more'"),
])  # fmt: skip
def test_what_is_no_task(values, told):
    with pytest.raises(ValueError, match=told):
        task_from_dict(values)


def test_options_are_refused_by_a_task_that_has_no_use_for_them():
    task = Darkness(("sax",), 0.5)
    with pytest.raises(ValueError, match="--known lv_ef is measured by segmentation, and the run is of darkness"):
        task.check_known(["lv_ef"])
    with pytest.raises(ValueError, match="--retest compares numbers of two scans of a heart, and the run predicts "):
        task.check_retest()
    with pytest.raises(ValueError, match=r"--threshold 0\.2 is for targets of two classes, and the run predicts dark"):
        task.check_decisions(0.2, None)
    with pytest.raises(ValueError, match="--regions a=1 is for label maps, and the run predicts darkness"):
        task.map_scoring(["a=1"], "leave-out", [])


def test_every_task_is_a_choice():
    assert TaskName.__args__ == tuple(TASKS)
    assert all(issubclass(task_class(name), Task) for name in TASKS)


def asked(source: str) -> list[str]:
    """The places of a module that ask which task there is."""
    found, classes = [], {home.rpartition(":")[2] for home in TASKS.values()}

    def names(node) -> set[str]:
        return {part.id if isinstance(part, ast.Name) else part.attr for part in ast.walk(node)
                if isinstance(part, ast.Name | ast.Attribute)}  # fmt: skip

    for node in ast.walk(ast.parse(source)):
        told = False
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args:
            told = node.func.id in ("isinstance", "issubclass") and bool(names(node.args[1]) & classes)
            told |= node.func.id in ("getattr", "hasattr", "isinstance", "type") and bool(
                {"task"} & names(node.args[0]))  # fmt: skip
        elif isinstance(node, ast.Compare | ast.Match):
            words = {part.value for part in ast.walk(node) if isinstance(part, ast.Constant)}
            sides = [node.left, *node.comparators] if isinstance(node, ast.Compare) else [node.subject]
            about = set().union(*map(names, sides))
            told = bool(about & {"task", "tasks"}) and ("kind" in about or bool(words & TASKS.keys()))
        if told:
            found.append(f"line {node.lineno}: {ast.unparse(node)[:80]}")
    return found


def test_nobody_asks_which_task_it_is():
    own = {home.partition(":")[0].replace(".", "/") + ".py" for home in TASKS.values()}
    files = [path for path in (ROOT / "cinema_fast").rglob("*.py") if path.relative_to(ROOT).as_posix() not in own]
    assert len(files) > 100 and "cinema_fast/tasks/segmentation.py" in own
    assert {str(path): told for path in files if (told := asked(path.read_text(encoding="utf-8")))} == {}


@pytest.mark.parametrize("source", [
    "isinstance(run.task, Segmentation)", "isinstance(x, Segmentation | Landmarks)", "run.task.kind == 'landmarks'",
    "task.kind != kind", "config.task in ('regression', 'multitask')", "getattr(run.task, 'structures', ())",
    "match config.task:\n    case 'landmarks': pass",
])  # fmt: skip
def test_asking_is_seen(source):
    assert len(asked(source)) == 1


def test_other_questions_are_none():
    assert asked("table.kind == score_kind.kind; x = task.kind; y['kind'] == 'landmarks'; isinstance(y, str)") == []
