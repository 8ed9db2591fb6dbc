"""Embeddings against their definition in loops over images; kills, mending, and answers to mistakes."""

import json
import shutil
import signal
import sys
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from embedding_files import KILL
from forked import run
from marks import slow
from tiny_runs import write_store

import cinema_fast as cf
from cinema_fast.cli import main
from cinema_fast.cohort import embed as module
from cinema_fast.cohort import embedding
from cinema_fast.cohort.embed import EmbedConfig, embed
from cinema_fast.common.lock import hold_folder
from cinema_fast.data.loading.sampler import frame_at
from cinema_fast.data.store.store import CineStore
from cinema_fast.methods import mae
from cinema_fast.methods.pretrain import pretrain
from cinema_fast.methods.pretrain_config import PretrainConfig
from cinema_fast.train.run_info import LabelInfo, RunInfo, StoreInfo, read_run_info, write_run_info
from cinema_fast.train.setup import store_fingerprint

PRESETS = ("heartmae-tiny", "cinema-tiny")


@pytest.fixture(scope="module")
def runs(tiny_store, tmp_path_factory):
    """{preset: a run folder of two steps}"""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mae, "write_report", lambda *_, **__: [])
        for preset in PRESETS:
            pretrain(
                PretrainConfig(
                    data=tiny_store, out=folder / preset, steps=2, preset=preset, batch_size=3, precision="fp32",
                    device="cpu",
                )
            )  # fmt: skip
    return {preset: folder / preset for preset in PRESETS}


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(module, "STUDIES_PER_PART", 5)


def model_of(folder) -> cf.CineMA:
    model = cf.CineMA(cf.CineMAConfig(**read_run_info(folder).model))
    cf.load_cinema_weights(model, folder / "checkpoints" / "step-00000002.safetensors")
    return model.eval()


def encoded(model, images: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """{view: (*grid, D)} of images by view, scaled to [0, 1] by their own range and padded at the end."""
    ready = {}
    for view, image in images.items():
        image = (image - image.min()) / (image.max() - image.min())
        room = [(0, whole - n) for whole, n in zip(model.config.image_size[view], image.shape)]
        ready[view] = torch.from_numpy(np.pad(image, room)).float()[None, None]
    with torch.no_grad():
        features = model.encode(ready)
    return {view: features[view][0].double().numpy().reshape(*model.config.grid(view), -1) for view in images}


def heartmae_by_loops(model, store: CineStore, study: str) -> np.ndarray:
    by_view = []
    for view in store.views(study):
        cine = np.load(store.info(study, view).path).astype(np.float64)
        planes = [cine[..., z] for z in range(cine.shape[3])] if cine.ndim == 4 else [cine]
        clips = [np.pad(plane[[0, 0, 1, 1, 2, 2, 3, 3]], ((0, 0), (8, 8), (8, 8))) for plane in planes]
        by_view.append(np.mean([encoded(model, {"clip": clip})["clip"].mean((0, 1, 2)) for clip in clips], axis=0))
    return np.mean(by_view, axis=0)


def cinema_by_loops(model, store: CineStore, study: str) -> np.ndarray:
    by_phase = []
    for phase in (0.0, 0.25, 0.5, 0.75):
        frames = {v: np.load(store.info(study, v).path)[frame_at(phase, 4)].astype(float) for v in store.views(study)}
        features = encoded(model, frames)
        if "sax" in features:
            features["sax"] = features["sax"][:, :, :3]  # the fourth slice is padding
        by_phase.append(np.mean([f.reshape(-1, f.shape[-1]).mean(0) for f in features.values()], axis=0))
    return np.mean(by_phase, axis=0)


@pytest.mark.parametrize(
    ("preset", "by_loops", "clips"),
    [("heartmae-tiny", heartmae_by_loops, (3, 6)), ("cinema-tiny", cinema_by_loops, (4, 4))],
)
def test_vectors_equal_their_definition(tiny_store, runs, tmp_path, capfd, preset, by_loops, clips):
    out = tmp_path / "vectors.parquet"
    assert main(["embed", str(runs[preset]), str(tiny_store), str(out), "--batch-size", "4", "--device", "cpu"]) == 0
    shown = capfd.readouterr()
    assert "12 studies embedded, 0 skipped" in shown.out and "12 of 12" in shown.err
    store, model, table = CineStore(tiny_store), model_of(runs[preset]), pq.read_table(out)
    rows = table.to_pydict()
    assert rows["study"] == store.ids and [p.name for p in tmp_path.iterdir()] == ["vectors.parquet"]
    assert str(table.schema.field("embedding").type).startswith("fixed_size_list<")
    width = model.config.enc_embed_dim
    assert table.schema.field("embedding").type.list_size == width
    for study, vector, views, n in zip(*(rows[name] for name in ("study", "embedding", "views", "n_images"))):
        assert tuple(views) == store.views(study) and n == clips[len(views) == 4]
        np.testing.assert_allclose(vector, by_loops(model, store, study), rtol=0, atol=2e-5)
    assert np.std(rows["embedding"], axis=0).max() > 1e-3  # studies differ by far more than that
    found = {name.decode(): value.decode() for name, value in table.schema.metadata.items()}
    manifest = json.loads((runs[preset] / "checkpoints" / "step-00000002.json").read_text())
    assert found["preset"] == preset and found["step"] == "2" and found["store"] == store_fingerprint(store)
    assert found["checkpoint"] == f"step-00000002 {manifest['sha256']}"


def config_of(runs, store, out, **changes) -> EmbedConfig:
    return EmbedConfig(**{"run": runs["heartmae-tiny"], "store": store, "out": out, "device": "cpu"} | changes)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_study_is_the_mean_of_its_views(tiny_store, runs, tmp_path, preset):
    for per in ("study", "view"):
        embed(config_of(runs, tiny_store, tmp_path / f"{per}.parquet", run=runs[preset], per=per))
    studies, rows = (pq.read_table(tmp_path / f"{per}.parquet").to_pylist() for per in ("study", "view"))
    for study in studies:
        own = [row for row in rows if row["study"] == study["study"]]
        assert [row["view"] for row in own] == study["views"] and {row["sequence"] for row in own} == {"cine"}
        np.testing.assert_allclose(np.mean([row["embedding"] for row in own], axis=0), study["embedding"], atol=1e-6)
    assert len(rows) == 3 + 9 * 4 and np.ptp([row["embedding"] for row in rows[-4:]], axis=0).max() > 1e-3


def test_threads_change_nothing_and_batches_next_to_nothing(tiny_store, runs, tmp_path):
    tables = []
    for at, changes in enumerate(({}, {"workers": 4}, {"batch_size": 3})):
        embed(config_of(runs, tiny_store, tmp_path / f"{at}.parquet", **changes))
        tables.append(pq.read_table(tmp_path / f"{at}.parquet"))
    assert tables[0].equals(tables[1], check_metadata=True)
    vectors = [np.array(table["embedding"].to_pylist()) for table in tables]
    np.testing.assert_allclose(vectors[2], vectors[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("name", "left"), [("part-000001.parquet", 2), slow("out.parquet", 0)])
def test_a_killed_run_goes_on(tiny_store, runs, tmp_path, monkeypatch, name, left):
    out = tmp_path / "out.parquet"
    arguments = ("embed", runs["heartmae-tiny"], tiny_store, out, "--device", "cpu")
    assert run(*arguments, code=KILL.format(name=name)).returncode == -signal.SIGKILL
    assert not out.exists() and (tmp_path / "out.parquet.parts" / "part-000000.parquet").exists()
    with pytest.raises(ValueError, match=r"part-000000.*made with other options.*\n  batch_size: was 32, now 7"):
        embed(config_of(runs, tiny_store, out, batch_size=7))
    made = []
    compute = embedding.embed_studies
    monkeypatch.setattr(embedding, "embed_studies", lambda *a, **k: (made.append(a[2]), compute(*a, **k))[1])
    with hold_folder(tmp_path / "out.parquet.parts", "written", "wait", ValueError, print), pytest.raises(
        ValueError, match=r"is being written by another process \(pid \d+ on .*\): wait for it"
    ):
        embed(config_of(runs, tiny_store, out))
    assert embed(config_of(runs, tiny_store, out)).exit_code == 0
    assert len(made) == left
    embed(config_of(runs, tiny_store, tmp_path / "undisturbed.parquet"))
    assert pq.read_table(out).equals(pq.read_table(tmp_path / "undisturbed.parquet"), check_metadata=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.parquet", "undisturbed.parquet"]
    assert embed(config_of(runs, tiny_store, out, resume=True)).studies == 12 and len(made) == left + 3


def test_a_study_that_cannot_be_read_is_named_and_tried_again(tiny_store, runs, tmp_path, capfd):
    path, out = shutil.copytree(tiny_store, tmp_path / "store"), tmp_path / "out.parquet"
    file, whole = path / "studies" / "s05" / "lax_2c.npy", (tiny_store / "studies" / "s05" / "lax_2c.npy").read_bytes()
    file.write_bytes(bytes(len(whole)))  # of the right size, and no .npy file
    command = ["embed", str(runs["heartmae-tiny"]), str(path), str(out), "--device", "cpu"]
    assert main(command) == 1
    shown = capfd.readouterr().out
    assert "11 studies embedded, 1 skipped" in shown and "skipped: study s05: " in shown and "lax_2c.npy" in shown
    assert "s05" not in pq.read_table(out)["study"].to_pylist()
    assert list(json.loads(pq.read_schema(out).metadata[b"skipped"])) == ["s05"]
    damaged = tmp_path / "out.parquet.parts" / "part-000000.parquet"
    damaged.write_bytes(damaged.read_bytes()[:-100])  # and a part is cut meanwhile
    file.write_bytes(whole)
    assert main([*command, "--resume"]) == 0
    embed(config_of(runs, tiny_store, tmp_path / "undisturbed.parquet"))
    assert pq.read_table(out).equals(pq.read_table(tmp_path / "undisturbed.parquet"), check_metadata=True)


def test_labels_colour_a_picture_beside_the_table(tiny_store, runs, tmp_path):
    labels, out = tmp_path / "labels.csv", tmp_path / "out.parquet"
    labels.write_text("study,edv\n" + "".join(f"s{i:02d},{100 + i}\n" for i in range(12)))
    with pytest.raises(ValueError, match="no column 'ef'"):  # before anything is computed
        embed(config_of(runs, tiny_store, out, labels=labels))
    assert not list(tmp_path.glob("out*"))
    embed(config_of(runs, tiny_store, out))
    report = embed(config_of(runs, tiny_store, out, labels=labels, colour="edv", resume=True))
    assert str(report).endswith(f"written: {out}\nwritten: {out.with_suffix('.png')}")
    assert (tmp_path / "out.png").stat().st_size > 5000
    with pytest.raises(ValueError, match=r"out\.png exists"):
        out.unlink()
        embed(config_of(runs, tiny_store, out, labels=labels, colour="edv"))


@pytest.mark.parametrize("name", ["x.png", "x", "x.csv"])
def test_another_suffix_is_refused(tiny_store, runs, tmp_path, name):
    with pytest.raises(ValueError, match=rf"{name}: OUT is a Parquet file, name it .*/x\.parquet$"):
        config_of(runs, tiny_store, tmp_path / name)


def test_when_no_study_has_what_the_model_takes(runs, tmp_path):
    path = write_store(tmp_path / "store", {"a": ("sax",), "b": ("lax_2c",)})
    info = read_run_info(runs["cinema-tiny"])
    narrow = shutil.copytree(runs["cinema-tiny"], tmp_path / "run")
    sizes = {view: [16, 16, 1][: len(n)] for view, n in info.model["image_size"].items()}
    write_run_info(narrow, replace(info, model=info.model | {"image_size": sizes}))
    with pytest.raises(ValueError, match="do not fit this model"):  # position tables of another size
        embed(EmbedConfig(run=narrow, store=path, out=tmp_path / "out.parquet", device="cpu"))
    large = write_store(tmp_path / "large", {"c": ("sax",)}, frames=1)
    with pytest.raises(ValueError, match="4 frames or more"):
        embed(config_of(runs, large, tmp_path / "none.parquet"))
    index = json.loads((path / "index.json").read_text())
    (path / "studies/a/sax.npy").rename(path / "studies/a/rvot.npy")
    index["studies"]["a"] = {"rvot": {**index["studies"]["a"]["sax"], "file": "studies/a/rvot.npy"}}
    del index["studies"]["b"]
    (path / "index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"none of the views of .* \(sax, lax_2c, lax_3c, lax_4c\), only rvot"):
        embed(EmbedConfig(run=runs["cinema-tiny"], store=path, out=tmp_path / "none.parquet", device="cpu"))
    assert not list(tmp_path.glob("none*"))


def test_when_no_study_can_be_read(runs, tmp_path, capfd):
    path = write_store(tmp_path / "store", {"a": ("sax",)})
    file = path / "studies/a/sax.npy"
    file.write_bytes(bytes(file.stat().st_size))
    assert main(["embed", str(runs["cinema-tiny"]), str(path), str(tmp_path / "none.parquet"), "--device", "cpu"]) == 3
    assert "study a: " in capfd.readouterr().out and not (tmp_path / "none.parquet").exists()


def test_mistakes(tiny_store, runs, tmp_path, monkeypatch):
    (tmp_path / "folder.parquet").mkdir()
    for changes, match in (
        ({"run": tmp_path}, "holds no run"),
        ({"store": tmp_path / "nowhere"}, "does not exist"),
        ({"out": tmp_path / "folder.parquet"}, "is a folder"),
    ):
        with pytest.raises(ValueError, match=match):
            embed(config_of(**{"runs": runs, "store": tiny_store, "out": tmp_path / "out.parquet"} | changes))
    with pytest.raises(ValueError, match="--batch-size must be at least 1, got 0"):
        config_of(runs, tiny_store, tmp_path / "out.parquet", batch_size=0)
    unsaved = shutil.copytree(runs["heartmae-tiny"], tmp_path / "unsaved", ignore=lambda *_: ["checkpoints"])
    with pytest.raises(ValueError, match="has no checkpoint yet"):
        embed(config_of(runs, tiny_store, tmp_path / "out.parquet", run=unsaved))
    (tmp_path / "note.parquet").write_text("mine")
    for resume, match in ((False, r"note\.parquet exists"), (True, "not a Parquet file")):
        with pytest.raises(ValueError, match=match):
            embed(config_of(runs, tiny_store, tmp_path / "note.parquet", resume=resume))
    assert (tmp_path / "note.parquet").read_text() == "mine"
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ValueError, match=r"pip install 'cinema-fast\[embed\]'"):
        embed(config_of(runs, tiny_store, tmp_path / "out.parquet"))
    assert not list(tmp_path.glob("out*"))


def test_a_fine_tuned_run(tmp_path, tiny_store):
    labels = LabelInfo({"kind": "segmentation"}, {"train": [], "val": [], "test": []}, [])
    write_run_info(tmp_path / "run", RunInfo({}, {}, StoreInfo(1, "ab", "stored"), {}, labels=labels))
    with pytest.raises(ValueError, match=r"^\S+run is a run of finetune, and embed needs one of pretrain; [^\n]*$"):
        embed(EmbedConfig(tmp_path / "run", tiny_store, tmp_path / "out.parquet"))
