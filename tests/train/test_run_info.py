"""What a run is made of comes back from its config.yaml as it was written, also by earlier versions."""

from dataclasses import replace

import pytest
import yaml

from cinema_fast.data.store.clips import MIN_FRAMES
from cinema_fast.train.run_info import LabelInfo, RunInfo, StoreInfo, min_frames_of, read_run_info, write_run_info

PRETRAIN = RunInfo(
    options={"preset": "cinema-tiny", "views": ["sax"], "lr": 1e-3, "init_from": None, "ranks": 2},
    model={"views": ["sax"], "image_size": {"sax": [32, 32, 4]}},
    store=StoreInfo(12, "ab" * 32, "patient"),
    versions={"torch": "2.13.0"},
)
FINETUNE = replace(
    PRETRAIN,
    store=replace(PRETRAIN.store, prepare={"sax_size": [32, 32, 4], "orientation": "patient"}),
    labels=LabelInfo(
        task={"kind": "segmentation", "structures": ["LV"]},
        split={"train": ["a", "b"], "val": ["c"], "test": []},
        used=["b"],
        view_sets=[{"views": ["sax"], "studies": 1}],
        fewest_slices={"sax": 3},
        seen={"studies": ["b", "c", "d"], "unknown": []},
    ),
)
CLIPS = replace(PRETRAIN, model={"views": ["clip"]}, min_frames=MIN_FRAMES)
# as the first versions wrote them
OLD = {"run": {"preset": "cinema-tiny"}, "model": {"views": ["sax"]}, "store": {"studies": 3, "sha256": "cd"}}
OLD_LABELS = {
    "task": {"kind": "segmentation"}, "split": {"train": ["a"], "val": ["b"], "test": ["c"]}, "used": ["a"],
    "versions": {"torch": "2.9.0"},
}  # fmt: skip


def read(folder, values) -> RunInfo:
    (folder / "config.yaml").write_text(values if isinstance(values, str) else yaml.safe_dump(values))
    return read_run_info(folder)


@pytest.mark.parametrize("info", [PRETRAIN, FINETUNE, CLIPS], ids=["pretrain", "finetune", "clips"])
def test_it_comes_back(tmp_path, info):
    assert read_run_info(tmp_path) is None
    write_run_info(tmp_path / "run", info)
    assert read_run_info(tmp_path / "run") == info
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.yaml"]


def test_what_the_file_says(tmp_path):
    write_run_info(tmp_path, FINETUNE)
    values = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert values == FINETUNE.to_dict() and (values["format"], values["kind"]) == (3, "finetune")
    assert list(values) == [
        "format", "kind", "run", "model", "store", "task", "split", "used", "view_sets", "fewest_slices", "seen",
        "versions",
    ]  # fmt: skip
    assert list(PRETRAIN.to_dict()) == ["format", "kind", "run", "model", "store", "versions"]
    assert CLIPS.to_dict()["min_frames"] == MIN_FRAMES
    assert PRETRAIN.to_dict()["store"] == {"studies": 12, "sha256": "ab" * 32, "orientation": "patient"}


def test_files_of_older_versions(tmp_path):
    old = read(tmp_path, OLD)
    assert old.kind == "pretrain" and old.labels is old.min_frames is old.store.prepare is None
    assert (old.options, old.store.studies, old.store.orientation, old.versions) == (OLD["run"], 3, "stored", {})
    tuned = read(tmp_path, OLD | OLD_LABELS)
    assert tuned.kind == "finetune" and tuned.labels.used == ["a"] and tuned.versions == {"torch": "2.9.0"}
    assert tuned.labels.view_sets is tuned.labels.fewest_slices is tuned.labels.seen is None
    assert tuned.to_dict() == {"format": 3, "kind": "finetune"} | OLD | OLD_LABELS | {
        "store": OLD["store"] | {"orientation": "stored"}
    }


def test_options_under_their_old_names(tmp_path):
    options = {"preset": "cinema-tiny", "clip": 5.0, "keep": 2}
    assert read(tmp_path, OLD | {"run": options, "format": 2, "kind": "pretrain"}).options == {
        "preset": "cinema-tiny", "clip_grad": 5.0, "keep_checkpoints": 2,
    }  # fmt: skip


def test_the_axes_of_a_store_come_from_its_own_entry_or_its_preparation(tmp_path):
    prepared = OLD | {"store": OLD["store"] | {"prepare": {"orientation": "patient"}}}
    assert read(tmp_path, prepared).store.orientation == "patient"
    assert read(tmp_path, OLD | {"store": OLD["store"] | {"orientation": "patient"}}).store.orientation == "patient"


def test_older_runs_over_clips_go_on_with_cines_of_two_frames(tmp_path):
    old = read(tmp_path, OLD | {"model": {"views": ["clip"]}})
    assert old.min_frames == min_frames_of(old) == 2
    assert min_frames_of(None) == min_frames_of(CLIPS) == MIN_FRAMES
    assert read(tmp_path, OLD | {"model": {"views": ["clip"]}, "min_frames": 3}).min_frames == 3


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ("", "content is not of type dict"), ("[1]", "content is not of type dict"), ("run: [", "ParserError"),
        ("\0", "ReaderError"),
        ({}, "run is missing"), (OLD | {"model": 3}, "model is not of type dict"),
        (OLD | {"store": {}}, "studies is missing"),
        (OLD | {"model": {"views": 3}}, "views is not of type list"),
        (OLD | {"versions": []}, "versions is not of type dict"),
        (OLD | {"store": {"studies": 3, "sha256": 5}}, "sha256 is not of type str"),
        (OLD | {"format": "2"}, "format is not of type int"),
        (OLD | {"kind": "both"}, "kind is 'both', expected pretrain or finetune"),
        (OLD | {"kind": "finetune"}, "split is missing"), (OLD | OLD_LABELS | {"split": {}}, "train is missing"),
        (OLD | OLD_LABELS | {"seen": []}, "seen is not of type dict"),
        (OLD | {"min_frames": "4"}, "min_frames is not of type int"),
    ],
)  # fmt: skip
def test_a_damaged_file(tmp_path, values, reason):
    with pytest.raises(ValueError) as error:
        read(tmp_path, values)
    assert str(error.value).startswith(f"{tmp_path / 'config.yaml'} is damaged ({reason}")
    assert str(error.value).endswith("; start another run, or restore the file")


def test_a_file_of_a_newer_version(tmp_path):
    with pytest.raises(ValueError, match=r"config\.yaml is of format 4, which a newer version .* update cinema-fast"):
        read(tmp_path, {"format": 4, "made of": "other things"})
