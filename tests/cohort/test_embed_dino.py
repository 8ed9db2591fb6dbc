"""Embeddings of self-distilled runs against the teacher called slice by slice; per view; kills; probes and clusters."""

import json
import shutil
import signal
from dataclasses import asdict, replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from embedding_files import KILL, write_embeddings
from forked import run
from safetensors.torch import load_file

import cinema_fast as cf
from cinema_fast.cli import main
from cinema_fast.cohort import embed as module
from cinema_fast.cohort.cluster import cluster
from cinema_fast.cohort.cluster_config import ClusterConfig
from cinema_fast.cohort.embed import EmbedConfig, embed
from cinema_fast.cohort.embeddings import read_embeddings
from cinema_fast.cohort.encoders import encoder_of
from cinema_fast.cohort.probe_embeddings import ProbeConfig, probe
from cinema_fast.data.store import store as cine_store
from cinema_fast.data.store.store import CineStore
from cinema_fast.methods.pretrain import pretrain
from cinema_fast.methods.pretrain_config import PretrainConfig
from cinema_fast.models import config as presets
from cinema_fast.models.config import DINOConfig, ViTConfig
from cinema_fast.models.vit import ViT
from cinema_fast.train.run_info import read_run_info, write_run_info

SMALL = DINOConfig(
    vit=ViTConfig(embed_dim=32, depth=2, n_heads=2, image_size=32), drop_path=0.1, prototypes=64, head_hidden=32,
    bottleneck=16, n_local=2, local_size=16,
)  # fmt: skip
# {view: (shape, channels)}; of two kinds of studies, whose images have other sizes
FIRST = {
    "sax": ((6, 40, 44, 3), ()), "lax_2c": ((3, 44, 36), ()), "lge_sax": ((1, 40, 44, 2), ("lge_sax",)),
    "both_sax": ((5, 36, 36, 1), ("C0", "DE", "LGE", "cine", "PSIR")),
}  # fmt: skip
SECOND = {
    "lax_2c": ((2, 26, 50), ()), "t1map_lax_4c": ((1, 33, 32), ("t1map_lax_4c",)),
    "lge_sax": ((1, 52, 40, 4), ("DE",)),
}  # fmt: skip
SHOWN = {6: (0, 1, 3, 4), 3: (0, 1, 2), 2: (0, 1), 1: (0,), 5: (0, 1, 2, 3, 4)}  # by frames; five are channels
SEQUENCES = {"sax": "cine", "lax_2c": "cine", "lge_sax": "lge", "both_sax": None, "t1map_lax_4c": "t1map"}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Twelve studies of noise whose brightest pixel lies outside the central square."""
    path, rng = tmp_path_factory.mktemp("images") / "store", np.random.default_rng(0)
    index = {}
    for number in range(12):
        cines = {}
        for view, (shape, channels) in (SECOND if number % 3 == 0 else FIRST).items():
            frames = rng.integers(20, 200, shape, np.uint8)
            frames[:, 0, 0] = frames[:, -1, -1] = 240
            record = {
                "spacing_mm": [1.0, 1.0, 10.0][: len(shape) - 1], "frame_time_ms": None, "window": [[0, 9]] * shape[0],
                "source": {"file": "x.nii.gz", "sha256": "0" * 64, "files": []}, "affine": np.eye(4).tolist(),
                "centred_on": "image",
            }  # fmt: skip
            cines[view] = frames, record | {"channels": list(channels)} if channels else record
        study = f"s{number:02d}"
        index[study] = cine_store.write_study(path / "studies" / study, study, cines)
    cine_store.write_index(path, {"sax_size": [52, 44, 4], "lax_size": [44, 50]}, index)
    return path


@pytest.fixture(scope="module")
def trained(store, tmp_path_factory):
    """A run of two steps."""
    folder = tmp_path_factory.mktemp("dino") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(presets._PRESETS, "cmrfm-demo", SMALL)
        pretrain(PretrainConfig(
            data=store, out=folder, steps=2, preset="cmrfm-demo", batch_size=4, lr=0.02, warmup=0.0, device="cpu",
            precision="fp32",
        ))  # fmt: skip
    return folder


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(module, "STUDIES_PER_PART", 5)


def vit_of(folder, branch: str = "teacher") -> ViT:
    """In float64."""
    weights = load_file(folder / "checkpoints" / "step-00000002.safetensors")
    vit = ViT(SMALL.vit).double()
    vit.load_state_dict({n.removeprefix(f"{branch}.backbone."): t.double() for n, t in weights.items()
                         if n.startswith(f"{branch}.backbone.")})  # fmt: skip
    return vit


@torch.no_grad()
def of_image(vit: ViT, image: np.ndarray) -> np.ndarray:
    """(2, D): the class token, and the mean of the patch tokens, of the central square at the model's size."""
    image = torch.from_numpy((image - image.min()) / (image.max() - image.min()))
    side = min(image.shape)
    x, y = ((n - side) // 2 for n in image.shape)
    square = image[None, None, x : x + side, y : y + side]
    square = F.interpolate(square, (32, 32), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    tokens = vit((square - 0.25) / 0.25)
    return torch.stack([tokens["cls"][0], tokens["patches"][0].mean(0)]).numpy()


def by_loops(vit: ViT, store: CineStore, study: str) -> dict[str, np.ndarray]:
    """{view: (2, D)}."""
    found = {}
    for view in store.views(study):
        frames = np.load(store.info(study, view).path).astype(np.float64)
        shown = frames[list(SHOWN[len(frames)])]
        slices = shown if shown.ndim == 3 else np.concatenate(np.moveaxis(shown, 3, 1))
        found[view] = np.mean([of_image(vit, one) for one in slices], axis=0)
    return found


def config_of(run_folder, store, out, **changes) -> EmbedConfig:
    return EmbedConfig(**{"run": run_folder, "store": store, "out": out, "device": "cpu"} | changes)


def test_vectors_equal_their_definition(store, trained, tmp_path, capfd):
    command = ["embed", str(trained), str(store), str(tmp_path / "class.parquet"), "--device", "cpu"]
    assert main(command) == 0
    assert "12 studies embedded, 0 skipped" in capfd.readouterr().out
    for tokens in ("patches", "both"):
        embed(config_of(trained, store, tmp_path / f"{tokens}.parquet", tokens=tokens, batch_size=7, workers=4))
    vit, student, cines = vit_of(trained), vit_of(trained, "student"), CineStore(store)
    tables = {tokens: pq.read_table(tmp_path / f"{tokens}.parquet") for tokens in ("class", "patches", "both")}
    assert [t.schema.field("embedding").type.list_size for t in tables.values()] == [32, 32, 64]
    assert [t.schema.metadata[b"tokens"].decode() for t in tables.values()] == list(tables)
    rows = {tokens: table.to_pydict() for tokens, table in tables.items()}
    for at, study in enumerate(cines.ids):
        expected = np.mean(list(by_loops(vit, cines, study).values()), axis=0)
        for tokens, vector in (("class", expected[0]), ("patches", expected[1]), ("both", expected.ravel())):
            row = {name: values[at] for name, values in rows[tokens].items()}
            assert row["study"] == study and tuple(row["views"]) == cines.views(study)
            assert row["n_images"] == (7 if at % 3 == 0 else 12 + 3 + 2 + 5)
            np.testing.assert_allclose(row["embedding"], vector, rtol=0, atol=2e-5)
    assert np.abs(of_image(student, np.eye(32)) - of_image(vit, np.eye(32))).max() > 1e-3  # it is the teacher
    assert np.std(rows["class"]["embedding"], axis=0).max() > 1e-3


def test_a_row_per_view(store, trained, tmp_path):
    out, vit, cines = tmp_path / "views.parquet", vit_of(trained), CineStore(store)
    assert embed(config_of(trained, store, out, per="view", tokens="both")).studies == 12
    table = pq.read_table(out)
    assert table.schema.names == ["study", "view", "sequence", "embedding"] and table.schema.metadata[b"per"] == b"view"
    rows = iter(table.to_pylist())
    for study in cines.ids:
        for view, vector in by_loops(vit, cines, study).items():
            row = next(rows)
            assert (row["study"], row["view"], row["sequence"]) == (study, view, SEQUENCES[view])
            np.testing.assert_allclose(row["embedding"], vector.ravel(), rtol=0, atol=2e-5)
    assert next(rows, None) is None


def test_only_the_views_of_the_run(store, trained, tmp_path):
    narrow, info = shutil.copytree(trained, tmp_path / "run"), read_run_info(trained)
    write_run_info(narrow, replace(info, options=info.options | {"views": ["t1map_lax_4c", "both_sax"]}))
    for per in ("study", "view"):
        embed(config_of(narrow, store, tmp_path / f"{per}.parquet", per=per))
    by_study, by_view = (pq.read_table(tmp_path / f"{per}.parquet").to_pydict() for per in ("study", "view"))
    assert by_study["views"] == [["t1map_lax_4c"] if at % 3 == 0 else ["both_sax"] for at in range(12)]
    assert by_study["embedding"] == by_view["embedding"]
    write_run_info(narrow, replace(info, options=info.options | {"views": ["sax"]}))
    report = embed(config_of(narrow, store, tmp_path / "sax.parquet"))
    assert report.studies == 8 and set(report.skipped) == {"s00", "s03", "s06", "s09"}
    assert report.skipped["s00"] == f"{store} has no sax of it"


@pytest.mark.parametrize("options", [(), ("--per", "view", "--tokens", "patches")])
def test_a_killed_run_goes_on(store, trained, tmp_path, options):
    out = tmp_path / "out.parquet"
    command = ["embed", str(trained), str(store), str(out), "--device", "cpu", *options]
    assert run(*command, code=KILL.format(name="part-000001.parquet")).returncode == -signal.SIGKILL
    assert not out.exists() and (tmp_path / "out.parquet.parts" / "part-000000.parquet").exists()
    assert main(["embed", str(trained), str(store), str(out), "--device", "cpu", "--tokens", "both"]) == 1
    assert main(command) == 0
    command[3] = str(tmp_path / "undisturbed.parquet")
    assert main(command) == 0
    assert pq.read_table(out).equals(pq.read_table(tmp_path / "undisturbed.parquet"), check_metadata=True)


def test_other_options_are_refused(store, trained, tmp_path):
    out = tmp_path / "out.parquet"
    embed(config_of(trained, store, out))
    for changes, differs in (
        ({"tokens": "both"}, "tokens: was class, now both"), ({"per": "view"}, "per: was study, now view"),
    ):  # fmt: skip
        for resume in (True, False):
            with pytest.raises(ValueError, match=rf"made with other options:\n  {differs}\n"):
                embed(config_of(trained, store, out, resume=resume, **changes))
    table = pq.read_table(out)
    older = {name: value for name, value in table.schema.metadata.items() if name != b"per"}
    pq.write_table(table.replace_schema_metadata(older), out)  # as earlier versions wrote them
    assert embed(config_of(trained, store, out, resume=True)).studies == 12
    with pytest.raises(ValueError, match="per: was study, now view"):
        embed(config_of(trained, store, out, resume=True, per="view"))
    with pytest.raises(ValueError, match="--labels has no effect with --per view"):
        config_of(trained, store, out, labels=tmp_path / "t.csv", per="view")
    deeper = shutil.copytree(trained, tmp_path / "run")
    info = read_run_info(trained)
    write_run_info(deeper, replace(info, model=asdict(replace(SMALL, vit=replace(SMALL.vit, depth=3)))))
    with pytest.raises(ValueError, match=r"do not fit this model(.|\n)*missing blocks\.2"):
        embed(config_of(deeper, store, tmp_path / "deeper.parquet"))


@pytest.mark.parametrize("preset", ["cinema-tiny", "heartmae-tiny"])
def test_tokens_have_no_effect_on_other_models(store, trained, preset):
    info = read_run_info(trained)
    info = replace(info, options=info.options | {"preset": preset}, model=asdict(cf.preset(preset)), min_frames=2)
    with pytest.raises(ValueError, match=f"^--tokens patches has no effect on a run of {preset}, whose vectors are"):
        encoder_of(info, CineStore(store), "patches")
    assert encoder_of(info, CineStore(store), "class").metadata == {}


@pytest.fixture(scope="module")
def by_view(store, trained, tmp_path_factory):
    """The file of a row per view; and a table of its studies."""
    folder = tmp_path_factory.mktemp("by_view")
    embed(config_of(trained, store, folder / "views.parquet", per="view"))
    rng = np.random.default_rng(1)
    table = "study,ef\n" + "".join(f"s{i:02d},{rng.uniform(30, 70):.2f}\n" for i in range(12))
    (folder / "t.csv").write_text(table)
    return folder


def test_probe_and_cluster_take_a_view(by_view, tmp_path):
    """As from a file that has this view alone."""
    path = by_view / "views.parquet"
    rows = [row for row in pq.read_table(path).to_pylist() if row["view"] == "lax_2c"]
    vectors = np.array([row["embedding"] for row in rows])
    write_embeddings(tmp_path / "alone.parquet", vectors, [row["study"] for row in rows])
    found = {}
    for name, file, view in (("of", path, "lax_2c"), ("alone", tmp_path / "alone.parquet", None)):
        probe(ProbeConfig(file, by_view / "t.csv", ("ef",), tmp_path / f"probe-{name}", view=view, seeds=(0,)))
        cluster(ClusterConfig(file, tmp_path / f"cluster-{name}", view=view, resamples=20))
        read = [json.loads((tmp_path / f"{what}-{name}" / "results.json").read_text()) for what in ("probe", "cluster")]
        assert [result["options"]["view"] for result in read] == [view] * 2
        found[name] = [read[0]["targets"], read[1]["criterion"], read[1]["sizes"], read[1]["stability"]]
    assert found["of"] == found["alone"]
    assert "views.parquet, view lax_2c" in (tmp_path / "cluster-of" / "report" / "index.html").read_text()


def test_a_view_has_to_be_chosen(by_view, tmp_path, capsys):
    path = by_view / "views.parquet"
    assert main(["probe", str(path), "--table", str(by_view / "t.csv"), "--targets", "ef", "--out", "out"]) == 1
    assert main(["cluster", str(path), "--out", str(tmp_path / "out")]) == 1
    held = "lax_2c, lge_sax, t1map_lax_4c, sax, both_sax"
    told = f"cinema-fast: {path} has a vector per view: choose a view with --view ({held})\n"
    assert capsys.readouterr().err == told * 2
    with pytest.raises(ValueError, match=r"views\.parquet has no view 'lge': choose another with --view \(lax_2c, "):
        read_embeddings(path, "lge")
    write_embeddings(tmp_path / "e.parquet", np.eye(3))
    with pytest.raises(ValueError, match=r"^--view sax has no effect on .*e\.parquet, which has one vector per study"):
        read_embeddings(tmp_path / "e.parquet", "sax")
    assert read_embeddings(path, "t1map_lax_4c").studies == ["s00", "s03", "s06", "s09"]
