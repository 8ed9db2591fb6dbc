"""Runs side by side, from folders written by hand, with figures that are known."""

import json
import shutil

import numpy as np
import pytest
import yaml
from matplotlib.image import imread
from sink_lines import INFO

from cinema_fast.cli import main
from cinema_fast.evaluation import compare_runs as module
from cinema_fast.evaluation.compare_runs import WIDTH, compare_runs
from cinema_fast.train.log import RunLog


def line(step: int, loss, **more) -> dict:
    return {"step": step, "loss": loss, "grad_norm": 2.0, "skipped": 0, "studies_per_s": 10.0, "data_wait": 0.0} | more


def folder(path, lines=(), *, steps=100, evaluation=None, after="", model=None, **options):
    """A run folder; after: what metrics.jsonl ends with."""
    (path / "report").mkdir(parents=True)
    run = {"out": str(path), "steps": steps, "lr": 1e-3, "views": ["sax", "lax_2c"], "mask": {"guidance": "none"}}
    store = {"studies": 8, "sha256": "ab" * 32}
    config = {"run": run | options, "model": model or {"enc_depth": 2}, "store": store, "versions": {"torch": "2.13.0"}}
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    (path / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines) + after)
    if evaluation:
        (path / "report" / "evaluation.json").write_text(json.dumps(evaluation))
    return path


def tables(text: str) -> dict[str, list[str]]:
    """{first cell: the others} of all the rows of Markdown tables."""
    rows = [[cell.strip() for cell in row[1:-1].split(" | ")] for row in text.splitlines() if row.startswith("|")]
    return {first: others for first, *others in rows if set(first) != {"-"}}


@pytest.fixture
def two(tmp_path):
    """One run that is finished and judged, on a GPU; one that is at half of it, on a CPU."""
    whole = [
        line(n, 100 / n, grad_norm=n / 10, studies_per_s=n, data_wait=n / 1000, skipped=n // 50, mfu=n / 200)
        | {"peak_mib": peak}
        for n, peak in zip(range(2, 101, 2), [10, 99, *[20] * 48])
    ]
    judged = {"studies": 3, "loss": 0.75, "baseline_loss": 1.5, "ratio": 0.5}
    long = folder(tmp_path / "long", whole, evaluation=judged)
    half = [line(n, 3.0) for n in range(5, 46, 5)] + [line(50, None)]
    short = folder(tmp_path / "short", half, lr=2e-3, mask={"guidance": "motion"}, after='{"step": 55, "lo')
    return long, short


def test_the_figures(two):
    found = tables(compare_runs(two))
    ending = range(92, 101, 2)  # the last tenth: steps above 90
    assert found == {
        "figure": ["long", "short"],
        "steps made": ["100 of 100", "50 of 100"],
        "loss, last": ["1.00000", "not finite"],
        "loss, mean of the last 10 % of steps": [f"{np.mean([100 / n for n in ending]):.5f}", "-"],
        "loss, mean of the last 10 % up to step 50": [f"{np.mean([100 / n for n in (46, 48, 50)]):.5f}", "-"],
        "gradient norm, mean of the last 10 % of steps": ["9.6", "2"],
        "updates skipped": ["2", "0"],
        "studies/s, median": ["51", "10"],
        "data wait, median": ["5.1%", "0.0%"],
        "MFU, median": ["25.5%", "-"],
        "peak memory, MiB": ["99", "-"],
        "held-out loss": ["0.75000", "-"],
        "held-out loss / that of the mean patch": ["0.500", "-"],
        "option": ["long", "short"],
        "lr": ["0.001", "0.002"],
        "mask.guidance": ["none", "motion"],
    }


def test_the_curves(two, tmp_path, monkeypatch):
    figures = []
    new = module.new_figure
    monkeypatch.setattr(module, "new_figure", lambda *size: figures.append(new(*size)) or figures[-1])
    assert compare_runs(two, tmp_path / "out") in (tmp_path / "out" / "comparison.md").read_text()
    (axes,) = figures[0].axes
    long, judged, short = ([*zip(*curve.get_data())] for curve in axes.lines)
    assert long == [(n, 100 / n) for n in range(2, 101, 2)]
    assert judged == [(100, 0.75)]
    assert short == [(n, 3.0) for n in range(5, 46, 5)]  # what is not finite, or not yet written, is no point
    assert axes.get_yscale() == "log"
    assert [text.get_text().strip() for text in axes.get_legend().get_texts()] == [
        "long", "long, held out 0.7500", "short",
    ]  # fmt: skip
    assert axes.get_ylabel() == "masked loss (MSE)"
    picture = imread(tmp_path / "out" / "comparison.png")
    assert picture.shape[:2] == (540, 960) and picture[..., :3].std() > 0.05


def test_distillation_is_compared_with_itself(two, tmp_path, monkeypatch):
    ours = [folder(tmp_path / name, [line(1, 8.0)], model={"vit": {}}) for name in ("a", "b")]
    figures, new = [], module.new_figure
    monkeypatch.setattr(module, "new_figure", lambda *size: figures.append(new(*size)) or figures[-1])
    compare_runs(ours, tmp_path / "out")
    assert figures[0].axes[0].get_ylabel() == "distillation loss"
    told = "compare: a is a run of pretrain by self-distillation, long one of pretrain by masked images, whose losses"
    with pytest.raises(ValueError, match=told):
        compare_runs([ours[0], two[0]])


def test_runs_that_have_just_begun(tmp_path):
    begun, empty = folder(tmp_path / "_begun$x$_"), folder(tmp_path / "em|pty")
    (begun / "metrics.jsonl").unlink()
    text = compare_runs([begun, empty], tmp_path / "out")
    assert tables(text.replace(r"\|", "")) == {"figure": ["_begun$x$_", "empty"], "steps made": ["0 of 100"] * 2}
    assert text.endswith("They do not differ in any option.") and (tmp_path / "out" / "comparison.png").exists()


def test_of_a_full_run_and_one_without_lines_the_figures_are_shown(two, tmp_path):
    found = tables(compare_runs([two[0], folder(tmp_path / "begun", steps=7)]))
    assert found["steps made"] == ["100 of 100", "0 of 7"] and found["updates skipped"] == ["2", "-"]
    assert not any("up to step" in label for label in found)


def test_what_cannot_be_read_is_left_out_and_reported(tmp_path):
    damaged = folder(tmp_path / "damaged", [line(10, 1.0)], after='{"loss": 1.0}\n\0\0\n[3]\n')
    with (damaged / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(line(20, 0.5)) + "\n" + json.dumps(line(30, "0.5")) + "\n")
    (damaged / "report" / "evaluation.json").write_text('{"loss": 0.')
    text = compare_runs([damaged, folder(tmp_path / "sound", [line(20, 1.0)])])
    assert "damaged: left out of metrics.jsonl, as it cannot be read: line 2, 3, 4, 6\n" in text
    assert "damaged: report/evaluation.json cannot be read (JSONDecodeError" in text
    assert tables(text)["loss, last"] == ["0.50000", "1.00000"] and "held-out loss" not in tables(text)


def test_a_file_that_is_no_text_is_named(tmp_path):
    damaged = folder(tmp_path / "damaged", [])
    for content in (b"\xff\xfe\x01", b"\0" * 40, b"\x80\n" * 9):
        (damaged / "metrics.jsonl").write_bytes(content)
        text = compare_runs([damaged, folder(tmp_path / "sound", [line(20, 1.0)])])
        assert f"damaged: {damaged / 'metrics.jsonl'} cannot be read: it is not text" in text and "left out" not in text
        shutil.rmtree(tmp_path / "sound")
    (damaged / "metrics.jsonl").write_bytes(b"\xff\xfe\x01")
    with pytest.raises(ValueError, match=r"damaged/metrics\.jsonl is not text, .*: restore it .* or move it away"):
        RunLog(damaged, steps=2, done=1, sinks=(), info=INFO)


def test_options_that_only_one_run_has_and_names_that_two_have(tmp_path):
    first = folder(tmp_path / "a" / "run", mode="graph", views=["sax"])
    second = folder(tmp_path / "b" / "run")
    text = compare_runs([first, second])
    found = tables(text)
    assert found["option"] == ["run 1", "run 2"] and text.startswith(f"- run 1: {first}\n- run 2: {second}\n")
    assert found["mode"] == ["graph", "-"] and found["views"] == ["sax", "sax lax_2c"] and "out" not in found
    config = yaml.safe_load((second / "config.yaml").read_text())
    config["store"]["studies"], config["versions"]["torch"] = 9, "2.11.0"
    (second / "config.yaml").write_text(yaml.safe_dump(config))
    found = tables(compare_runs([first, second]))
    assert (found["store.studies"], found["versions.torch"]) == (["8", "9"], ["2.13.0", "2.11.0"])


def test_every_line_fits_a_screen(tmp_path):
    """Twelve runs, and options as long as paths are: in several tables and in lines of their own, nothing is cut."""
    data = [f"/data/{'x' * 60}{n}" for n in range(12)]
    paths = [folder(tmp_path / f"a-run-with-a-name-{n}", [line(10, 1.0)], lr=n / 1000, data=data[n]) for n in range(12)]
    text = compare_runs(paths)
    assert max(len(row) for row in text.splitlines() if row.startswith("|")) <= WIDTH
    assert min(text.count("| figure"), text.count("| option")) > 1 and "| lr" in text
    assert all(path.name in text for path in paths) and f"- a-run-with-a-name-7: {data[7]}" in text


def test_mistakes(two, tmp_path, capfd):
    def refused(*arguments) -> str:
        assert main(["compare", *map(str, arguments)]) == 1
        err = capfd.readouterr().err
        assert err.startswith("cinema-fast: ") and err.count("\n") == 1
        return err

    assert f"{tmp_path} is not a run folder: it has no config.yaml" in refused(two[0], tmp_path)
    assert f"{tmp_path / 'none'} is not a run folder" in refused(tmp_path / "none", two[0])
    assert "takes two run folders or more, got 1" in refused(two[0])
    assert "takes two run folders or more, got 0" in refused()
    assert "given twice" in refused(two[0], two[1], two[0] / ".." / "long")
    assert f"{__file__} is a file; expected a folder" in refused(*two, "--out", __file__)
    (two[1] / "config.yaml").write_text("run: 3")
    assert f"{two[1] / 'config.yaml'} is damaged" in refused(*two, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_runs_as_they_are_made(tiny_store, tmp_path, capfd, monkeypatch):
    """The command line on what `pretrain` writes, its evaluation among it."""
    monkeypatch.setattr("cinema_fast.methods.mae_report.draw_reconstruction", lambda *_, **__: None)
    arguments = ["pretrain", "--data", str(tiny_store), "--steps", "2", "--preset", "cinema-tiny", "--batch-size", "2"]
    runs = [str(tmp_path / name) for name in ("one", "two")]
    for run, lr in zip(runs, ("1e-3", "2e-3")):
        assert main([*arguments, "--out", run, "--lr", lr, "--holdout", "0.3"]) == 0
    capfd.readouterr()
    assert main(["compare", *runs, "--out", str(tmp_path / "out")]) == 0
    found = tables(capfd.readouterr().out)
    last = [json.loads((tmp_path / name / "metrics.jsonl").read_text()) for name in ("one", "two")]
    judged = [json.loads((tmp_path / name / "report" / "evaluation.json").read_text()) for name in ("one", "two")]
    assert found["steps made"] == ["2 of 2"] * 2
    assert found["loss, last"] == [f"{line['loss']:.5f}" for line in last]
    assert found["studies/s, median"] == [f"{line['studies_per_s']:.4g}" for line in last]
    assert found["held-out loss"] == [f"{one['loss']:.5f}" for one in judged]
    assert found["lr"] == ["0.001", "0.002"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["comparison.md", "comparison.png"]
