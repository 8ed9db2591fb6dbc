"""What does not fit is named before training starts, with what to do."""

import json
import math
import re
import shutil

import numpy as np
import pytest
import torch
from labelled_discs import HEAD, rewrite, write_discs, write_points

from cinema_fast.cli import main
from cinema_fast.data.store.store import CineStore
from cinema_fast.evaluation.evaluate import evaluate_run
from cinema_fast.evaluation.evaluate_config import EvaluateConfig
from cinema_fast.metrics.rows import read_rows
from cinema_fast.models.config import preset
from cinema_fast.tasks.finetune import finetune
from cinema_fast.tasks.finetune_config import FinetuneConfig
from cinema_fast.tasks.finetuned_run import load_run
from cinema_fast.tasks.segmentation import Segmentation
from cinema_fast.tasks.split import split_studies

TABLE = "study,ef,kind,odd\n"


@pytest.fixture
def refused(discs, tmp_path):
    """Start a run, and see its ValueError match; nothing has been written."""

    def start(told: str, task: str, **options) -> None:
        with pytest.raises(ValueError, match=told):
            finetune(discs.config(tmp_path / "run", task, **options))
        assert not (tmp_path / "run").exists()

    return start


def table(path, rows) -> object:
    path.write_text("study," + "\n".join(rows) + "\n")
    return path


def test_segmentation(refused, tmp_path):
    bare = write_discs(tmp_path / "bare", 4, labels=())
    refused(r"bare holds no label maps: .*prepare SRC STORE --labels", "segmentation", data=bare)
    refused(r"study s\d\d: its sax label maps hold the label 3, and the structures are 2: RV, MYO \(1 to 2; ",
            "segmentation", structures=("RV", "MYO"))  # fmt: skip
    refused(r"no labelled training study in use \(of 6\) has the label 4 \(atrium\)", "segmentation",
            structures=("RV", "MYO", "LV", "atrium"))  # fmt: skip
    some = write_discs(tmp_path / "part", 12)
    index = json.loads((some / "index.json").read_text())
    for views in index["studies"].values():
        del views["lax_4c"]["labels"]
    (some / "index.json").write_text(json.dumps(index))
    refused(r"has no label maps of lax_4c: store them by", "segmentation", data=some, views=("lax_4c",))
    refused(r"--shots 7: only 6 labelled training studies$", "segmentation", shots=7)
    split = tmp_path / "split.csv"
    split.write_text("study,split\ns00,train\ns11,val\n")
    some = write_discs(tmp_path / "some", 12, views=("sax", "lax_4c"), last_view_of=11)
    refused(r"no validation study \(of 1\) has images and labels for --task segmentation", "segmentation",
            data=some, views=("lax_4c",), split=split)  # fmt: skip


def test_labels_of_few_maps(refused, discs, tmp_path):
    """A label in the last map of one study, and one that no study used for training has, are named by the index."""
    store = shutil.copytree(discs.store, tmp_path / "store")
    used = setup_of(discs, store).used
    rewrite(store, "s11", "lax_4c", lambda maps: np.where((maps == 3) & (np.arange(len(maps)) == 1)[:, None, None], 9,
                                                          maps))  # fmt: skip
    refused(r"study s11: its lax_4c label maps hold the label 9", "segmentation", data=store)
    shutil.rmtree(store)
    shutil.copytree(discs.store, store)
    for study in used:
        for view in ("sax", "lax_4c"):
            rewrite(store, study, view, lambda maps: np.where(maps == 1, 0, maps))
    refused(r"no labelled training study in use \(of 6\) has the label 1 \(RV\)", "segmentation", data=store)
    index = store / "index.json"
    older = re.sub(r', "values": \[[0-9, ]*\]', "", index.read_text())  # as it was before labels were recorded
    assert older != index.read_text()
    index.write_text(older)
    refused(r"no labelled training study in use \(of 6\) has the label 1 \(RV\)", "segmentation", data=store)


def test_a_label_that_no_study_has(refused, discs, tmp_path):
    """It is called -: not required, never predicted, not scored and in no table; a study that has it is named."""
    store = shutil.copytree(discs.store, tmp_path / "store")
    refused(r"study s\d\d: its (sax|lax_4c) label maps hold the label 1, which has no name among the structures - MYO "
            r"LV: --structures", "segmentation", data=store, structures=("-", "MYO", "LV"))  # fmt: skip
    for study in CineStore(store).ids:
        for view in ("sax", "lax_4c"):
            rewrite(store, study, view, lambda maps: np.where(maps == 1, 0, maps))
    options = ("--task segmentation --steps 1 --validate-every 1 --preset cinema-demo --decoder-channels 8 16 32 "
               "--views sax --structures - MYO LV --device cpu --batch-size 2")  # fmt: skip
    assert main(["finetune", "--data", str(store), "--out", str(tmp_path / "run"), *options.split()]) == 0
    run = load_run(tmp_path / "run", device="cpu")
    assert run.task.structures == ("-", "MYO", "LV")
    with torch.no_grad():
        run.model.pred_head_dict["sax"].bias[1] += 50  # a network that sees the label everywhere
    frames = CineStore(store).read_frames("s00", "sax", range(4))
    found = run.predict_frames("sax", frames)
    assert found.shape == (4, 4, *frames.shape[1:]) and not found[:, 1].any()
    torch.testing.assert_close(found.sum(1), torch.ones(frames.shape))
    assert run.task.tables.other_columns[-2:] == ("MYO_ml", "LV_ml")
    pytest.importorskip("jinja2")
    evaluate_run(EvaluateConfig(tmp_path / "run", tmp_path / "eval", device="cpu", resamples=10))
    rows = read_rows(tmp_path / "eval" / "rows.csv")
    assert {row["name"] for row in rows if row["kind"] == "segmentation"} == {"MYO", "LV"}


def setup_of(discs, store):
    config = discs.config(store, "segmentation", data=store)
    cines = CineStore(store)
    split = split_studies(cines.ids, val=config.val, test=config.test)
    return Segmentation.set_up(config, cines, preset(config.preset), split, min_frames=3)


def test_a_changed_geometry_is_found_by_prepare(tmp_path):
    """Label maps are compared with their cines when they are stored, so that training never meets others."""
    from cine_files import write_cine, write_study

    from cinema_fast.data.prepare.prepare import PrepareConfig, prepare

    write_study(tmp_path / "src", "p0")
    write_cine(tmp_path / "src/labels/p0_sax.nii.gz", np.ones((7, 7, 3, 3), np.uint8), np.eye(4))
    report = prepare(PrepareConfig(tmp_path / "src", tmp_path / "store", labels="labels/{id}_{view}.nii.gz"))
    assert "a label map of 7 x 7 x 3 voxels, its cine has" in str(report.failures)


def test_tables(refused, discs, tmp_path):
    file = tmp_path / "other.csv"
    refused(r"no column 'raduis'; did you mean 'radius'\?", "regression", targets=("raduis",))
    table(file, ["radius", "x1,3", "x2,4"])
    refused(r"other\.csv: no study of .* has a value in the column 'radius' \(the table's first study is 'x1', the "
            r"store's 's00'\)", "regression", table=file)  # fmt: skip
    rows = [f"s{n:02d},{n}" for n in range(12)]
    table(file, ["radius", *rows[:11], "s11,unknown"])
    refused(r"other\.csv, line 13: radius is 'unknown', not a number.*Leave the cell empty", "regression", table=file)
    refused(r"line 13: radius is 'unknown'.*--classes", "multitask", table=file, targets=("radius",))
    table(file, ["radius", *(f"s{n:02d},5" for n in range(12))])
    refused(r"'radius' is 5 for all of the labelled training studies in use \(6\): choose", "regression", table=file)
    for huge in ("1e300", "-1e39"):
        table(file, ["radius", *rows[:11], f"s11,{huge}"])
        refused(rf"other\.csv, line 13: radius is '{huge}', beyond 3\.4e\+38, the most", "regression", table=file)
    table(file, ["radius", *(f"s{n:02d},0.1" for n in range(12))])  # whose standard deviation is computed as 1e-17
    refused(r"'radius' is 0\.1 for all of the labelled training studies in use \(6\)", "regression", table=file)
    for text, plain in (("51,31", "51.31"), ("51%", "51"), ("1,051.5 %", "1051.5")):
        table(file, ["radius", *(f's{n:02d},"{text}"' for n in range(12))])
        for task in ("regression", "multitask"):
            refused(rf"other\.csv, line 2: radius is '{text}', not a number: write {plain}, with a decimal point and "
                    r"no other signs\. Leave the cell empty", task, table=file, targets=("radius",))  # fmt: skip
    refused(r"'radius' is among --classes; use --task classification", "regression", classes=("radius",))
    refused(r"'heart' has 5 classes in 9 studies$", "classification", targets=("heart",), table=_but(discs, file, 3))
    refused(r"'radius' has 6 classes in 8 studies; for numbers use --task regression", "classification",
            targets=("radius",), table=_but(discs, file, 4))  # fmt: skip


def _but(discs, path, left_out: int):
    """The table without its last studies."""
    path.write_text("\n".join(discs.table.read_text().splitlines()[:-left_out]))
    return path


def test_a_target_that_one_part_lacks(refused, tmp_path):
    file = tmp_path / "two.csv"
    split = tmp_path / "split.csv"
    split.write_text("study,split\n" + "\n".join(f"s{n:02d},{'train' if n < 8 else 'val'}" for n in range(12)))
    both = {"table": file, "targets": ("ef", "mass"), "split": split}
    table(file, ["ef,mass", *(f"s{n:02d},{n},{'' if n < 8 else n}" for n in range(12))])
    refused(r"no training study that has images has a value in the column 'mass'", "multitask", **both)
    table(file, ["ef,mass", *(f"s{n:02d},{n},{'' if n >= 8 else n}" for n in range(12))])
    refused(r"no validation study that has images has a value in the column 'mass'", "multitask", **both)
    table(file, ["ef,mass", *(f"s{n:02d},{n},{n if n in (0, 9) else ''}" for n in range(12))])
    refused(r"none of the labelled training studies in use \(2\) has a value in the column 'mass'", "multitask",
            shots=2, **both)  # fmt: skip


def test_classes(refused, tmp_path):
    file, split = tmp_path / "classes.csv", tmp_path / "split.csv"
    parts = ["train"] * 6 + ["val"] * 3 + ["test"] * 3
    split.write_text("study,split\n" + "\n".join(f"s{n:02d},{part}" for n, part in enumerate(parts)))

    def of(classes: str, told: str, **options) -> None:
        table(file, ["big", *(f"s{n:02d},{name}" for n, name in enumerate(classes) if name != "-")])
        refused(told, "classification", table=file, split=split, **options)

    of("nnnnnnynynyn", r"all training studies \(6\) have 'big' = 'n': change --val or --test, or give --split")
    of("ynynynynznyn", r"'big' 'z' is in the val studies and in none of the labelled training studies in use \(6\)")
    of("ynynynynnzyn", r"'big' 'z' is in the test studies and in none of")
    of("ynynyn---yny", r"no validation study \(of 3\) has images and labels for --task classification")
    of("------ynynyn", r"no training study \(of 6\) has images and labels")
    table(file, ["big", *(f"s{n:02d},{name}" for n, name in enumerate(["male", "female", " Male ", "Fe male"] * 3))])
    refused(r"classes\.csv: big is 'male' on line 2 and 'Male' on line 4, which would be two classes: spell it in one",
            "classification", table=file, split=split)  # fmt: skip
    table(file, ["big", *(f"s{n:02d},{name}" for n, name in enumerate(["0", "1", "1.0"] * 4))])
    refused(r"big is '1' on line 3 and '1\.0' on line 4", "classification", table=file, split=split)
    of("ynnnnnynnnyn", r"--shots 2: only 1 labelled training study of class 'y'", shots=2)
    of("ynnnnnynnnyn", r"'big' 'y' is in the val studies and in none of the labelled training studies in use .2.: "
       "choose other studies .*--subset-seed", label_fraction=0.3, subset_seed=1)  # fmt: skip


def test_classes_that_training_lacks_can_be_left_out(discs, tmp_path):
    """Studies of validation and test alone; counted by class; a training class of one study stays."""
    file, split = tmp_path / "classes.csv", tmp_path / "split.csv"
    parts = ["train"] * 6 + ["val"] * 3 + ["test"] * 3
    split.write_text("study,split\n" + "\n".join(f"s{n:02d},{part}" for n, part in enumerate(parts)))
    table(file, ["big,radius", *(f"s{n:02d},{name},{n}" for n, name in enumerate("ynynyw" + "ynz" + "zqw"))])
    common = {"table": file, "split": split, "steps": 1, "validate_every": 1, "classes_unknown": "drop"}
    finetune(discs.config(tmp_path / "run", "classification", **common))
    line = "big: 3 validation and test studies left out, whose class no training study in use has (q 1, z 2)"
    assert line in (tmp_path / "run" / "run.log").read_text()
    run = load_run(tmp_path / "run", device="cpu")
    assert run.task.targets[0].classes == ("n", "w", "y")
    assert (run.split.val, run.split.test) == (("s06", "s07"), ("s11",)) and len(run.split.train) == 6
    finetune(discs.config(tmp_path / "both", "multitask", targets=("big", "radius"), **common))
    both = load_run(tmp_path / "both", device="cpu")
    assert both.split.test == ("s09", "s10", "s11")  # their radius is known
    table(file, ["big", *(f"s{n:02d},{name}" for n, name in enumerate("ynynyw" + "nnz" + "zqw"))])
    finetune(discs.config(tmp_path / "one", "classification", **common))  # a given split is kept as it is
    assert "warning: all validation studies (2) have 'big' = 'n'" in (tmp_path / "one" / "run.log").read_text()
    with pytest.raises(ValueError, match=r"no validation study that has images has a value in the column 'big'"):
        table(file, ["big", *(f"s{n:02d},{name}" for n, name in enumerate("ynynyw" + "zzz" + "zqw"))])
        finetune(discs.config(tmp_path / "none", "classification", **common))


def test_landmarks_of_stacks_are_left_out(discs, tmp_path, capfd):
    """Points in a short-axis stack, such as the insertions of the right ventricle, change no run on long axes."""
    both = write_points(tmp_path / "both.csv", views=("lax_4c", "sax"))
    both.write_text("".join(
        line.replace("middle", "RV_insertion_anterior").replace("tip", "RV_insertion_inferior") if ",sax," in line
        else line for line in both.read_text().splitlines(keepends=True)))  # fmt: skip
    tasks = []
    for name, options in (("lax", {}), ("both", {"table": both}), ("named", {"table": both, "views": ("lax_4c",)})):
        finetune(discs.config(tmp_path / name, "landmarks", steps=1, validate_every=1, **options))
        tasks.append(load_run(tmp_path / name, device="cpu").task)
        assert ("both.csv: landmarks of stacks are left out: sax" in capfd.readouterr().err) == (name == "both")
    assert tasks[0] == tasks[1] == tasks[2] and tasks[0].names == ("middle", "tip")


def test_landmarks(refused, tmp_path):
    file = tmp_path / "some.csv"
    refused(r"--table \S+none\.csv: No such file", "landmarks", table=tmp_path / "none.csv")
    refused(r"landmarks are of long-axis views, and sax of s00 is a stack: name long-axis views by --views",
            "landmarks", table=write_points(file, views=("sax",)))  # fmt: skip
    refused(r"landmarks are of long-axis views, and sax of s00 is a stack", "landmarks", views=("sax",),
            table=write_points(file, views=("lax_4c", "sax")))  # fmt: skip
    refused(r"frame 9 of lax_4c of s00, which has 4 frames", "landmarks", table=write_points(file, frames=(1, 9)))
    refused(r"some\.csv: no landmarks of lax_2c of a study of", "landmarks", table=file, views=("lax_2c",))
    file.write_text(f"{HEAD}\nx1,lax_4c,0,apex,1,2,3\n")
    refused(r"some\.csv: none of the 12 studies of .* is in it: they are 's00', 's01', .*, \.\.\.; it has 'x1'$",
            "landmarks", table=file)  # fmt: skip
    lines = write_points(file).read_text().replace(",lax_4c,", ",LAX-4c,")
    file.write_text(lines)
    refused(r"some\.csv: view 'LAX-4c' \(\d+ lines\) is spelled 'lax_4c' in .*: correct the table", "landmarks",
            table=file)  # fmt: skip
    lines = write_points(file).read_text().splitlines()
    turned = [line.split(",") for line in lines[1:]]
    far = [",".join([*cells[:4], f"{-float(cells[4])}", cells[5], cells[6]]) for cells in turned]
    file.write_text("\n".join([HEAD, *far]))
    refused(r"no landmark of lax_4c lies on its image: prepare the store with a larger --lax-size", "landmarks",
            table=file)  # fmt: skip


@pytest.mark.parametrize("task", ["segmentation", "landmarks"])
def test_a_decoder_that_does_not_fit(refused, task):
    refused(r"--decoder-channels 8 8 8 8 8 8: (sax|lax_4c) images of 32 x 32( x 4)? voxels are not a multiple of "
            r"64 x 64", task, decoder_channels=(8,) * 6)  # fmt: skip
    refused(r"--decoder-channels 8: ConvUNetR: .* are not consecutive levels", task, decoder_channels=(8,))


def test_clips_are_not_for_maps(refused):
    refused(r"--task segmentation needs a model over frames", "segmentation", preset="heartmae-tiny")


@pytest.mark.parametrize(("changes", "told"), [
    ({"steps": 0}, "--steps must be at least 1, got 0"),
    ({"lr": 0.0}, r"--lr must be above 0"),
    ({"lr": math.inf}, "--lr must be above 0 and finite, got inf"),
    ({"clip_grad": math.nan}, "--clip-grad must be above 0 and finite, got nan"),
    ({"weight_decay": math.inf}, "--weight-decay must be finite and not negative, got inf"),
    ({"drop_path": math.nan}, "--drop-path is a share, at least 0 and below 1, got nan"),
    ({"decoder_channels": (0, 8, 16)}, "--decoder-channels needs one number or more, each at least 1, got 0 8 16"),
    ({"decoder_channels": (-8,)}, "--decoder-channels .* got -8"),
    ({"decoder_channels": ()}, "--decoder-channels .* got none"),
    ({"patience": -1}, "--patience must not be negative"),
    ({"val": 0.6, "test": 0.4}, "leave no study to train on"),
    ({"cutout": 1.0}, "--cutout is a share"),
    ({"warmup": 1.5}, "--warmup is a share"),
    ({"label_fraction": 0.0}, "--label-fraction must be above 0"),
    ({"shots": 2, "label_fraction": 0.5}, "--shots takes a number of studies, without --label-fraction"),
    ({"subset_seed": -1}, "--subset-seed must lie in"),
    ({"preset": "cinema-bas"}, "did you mean"),
    ({"table": "t.csv"}, "--table has no effect for --task segmentation"),
    ({"targets": ("ef",)}, "--targets has no effect for --task segmentation"),
    ({"task": "regression"}, "--task regression needs --table CSV and --targets"),
    ({"task": "landmarks"}, "--task landmarks needs --table CSV with the columns"),
    ({"task": "regression", "table": "t.csv", "targets": ("a", "b")}, "learns one column, got 2: use --task multitask"),
    ({"task": "multitask", "table": "t.csv", "targets": ("a", "a")}, "names a column twice"),
    ({"task": "multitask", "table": "t.csv", "targets": ("a",), "classes": ("b",)}, "--classes b: not among"),
    ({"network": "baseline", "init_from": "x"}, "takes no --init-from and no --freeze"),
    ({"loss_weights": (1.0,)}, "--loss-weights need --balance fixed, one for each of --targets; got 1"),
    ({"task": "regression", "table": "t.csv", "targets": ("a",), "balance": "fixed", "loss_weights": (0.0,)},
     "--loss-weights must be above 0, got 0.0"),
    ({"network": "baseline", "recompute": "full"}, "takes no --reduce cls and no --recompute"),
    ({"freeze": True}, "--freeze needs --init-from"),
    ({"structures": ("LV", "LV")}, "--structures needs different names"),
    ({"structures": ("-", "-")}, "--structures needs different names"),
    ({"classes_unknown": "drop"}, "--classes-unknown drop has no effect for --task segmentation"),
    ({"task": "regression", "table": "t.csv", "targets": ("a",), "classes_unknown": "drop"},
     "--classes-unknown drop has no effect for --task regression"),
])  # fmt: skip
def test_options(changes, told, tmp_path):
    options = {"data": tmp_path, "out": tmp_path / "run", "task": "segmentation", "steps": 1} | changes
    with pytest.raises(ValueError, match=told):
        FinetuneConfig(**options)


def test_the_command_line_answers_in_one_line(discs, tmp_path, capsys):
    words = ["finetune", "--data", str(discs.store), "--out", str(tmp_path / "run"), "--steps", "1"]
    assert main([*words, "--task", "regression", "--table", str(discs.table), "--targets", "ef"]) == 1
    told = capsys.readouterr().err
    assert told.startswith("cinema-fast: ") and told.count("\n") == 1 and "no column 'ef'" in told
    assert main([*words, "--task", "segmentation", "--print-config"]) == 0
    assert "label_fraction: 1.0" in capsys.readouterr().out
