"""The sequence and the image plane of stored frames, in stores of all versions, and what `inspect` says of them."""

import json

import numpy as np
import pytest
from prepared import run
from published_trees import frames, labels_at, write

from cinema_fast.data.store.describe_store import describe
from cinema_fast.data.store.records import make_info
from cinema_fast.data.store.store import CineStore

T, SHAPE = 4, (24, 22, 4)
OPTIONS = {
    "aliases": ("lge_sax=LGE", "t1map_lax_4c=T1", "odd=xyz", "t2map_sax=T2map"),
    "single": ("lge_sax", "t1map_lax_4c", "odd"), "channels": ("lax_3c=bSSFP+stir+t1",),
}  # fmt: skip


@pytest.fixture(scope="module")
def src(tmp_path_factory):
    """Two studies: a cine; single volumes; an image series over time that is no cine; channels of a long axis."""
    root = tmp_path_factory.mktemp("src")
    for n, study in enumerate("ab"):
        write(root / f"{study}_sax.nii.gz", frames(T, n))
        write(root / f"{study}_LGE.nii.gz", frames(T, n)[..., 0])
        write(root / f"{study}_T2map.nii.gz", frames(T, n)[..., :3])
        for name in ("bSSFP", "stir", "t1"):
            write(root / f"{study}_{name}.nii.gz", frames(T, n, (24, 22, 1))[..., 0])
    write(root / "a_T1.nii.gz", frames(T, 5, (24, 22, 1))[..., 0])
    write(root / "b_xyz.nii.gz", frames(T, 6)[..., 0])
    write(root / "labels/a_LGE.nii.gz", labels_at(0, T))
    return root


@pytest.fixture(scope="module")
def store(src, tmp_path_factory):
    path = tmp_path_factory.mktemp("prepared") / "store"
    assert run(src, path, labels="labels/{id}_{view}.nii.gz", **OPTIONS).failures == []
    return path


def told(path) -> dict:
    cines = CineStore(path)
    infos = {(study, view): cines.info(study, view) for study in cines.ids for view in cines.views(study)}
    return {key: (info.plane, [info.sequence(t) for t in range(info.shape[0])]) for key, info in infos.items()}


def test_of_every_frame(store):
    of_a = {
        "sax": ("sax", ["cine"] * 4), "lax_3c": ("lax_3c", ["cine", "t2w", None]), "lge_sax": ("sax", ["lge"]),
        "t1map_lax_4c": ("lax_4c", ["t1map"]), "t2map_sax": ("sax", ["t2map"] * 3),
    }  # fmt: skip
    of_b = {view: of_a[view] for view in ("sax", "lax_3c", "lge_sax", "t2map_sax")} | {"odd": (None, [None])}
    assert told(store) == {("a", view): one for view, one in of_a.items()} | {("b", v): one for v, one in of_b.items()}
    info = CineStore(store).info("a", "lge_sax")
    assert (info.view, info.sequences) == ("lge_sax", ("lge",))
    with pytest.raises(IndexError):
        CineStore(store).info("a", "lax_3c").sequence(3)


@pytest.mark.parametrize("version", [1, 2, 3])
def test_stores_of_earlier_versions_answer_by_names(store, tmp_path, version):
    """Versions 1 and 2 knew no channels: a volume was prepared as the one frame of a file per frame. Version 1 held the
    records of study.json in the index."""
    index = json.loads((store / "index.json").read_text())
    index = {key: index[key] for key in ("format", "prepare", "studies")} | {"version": version}
    for study, views in index["studies"].items():
        if version == 1:
            views |= json.loads((store / f"studies/{study}/study.json").read_text())
        for record in views.values():
            if version < 3:
                record.pop("channels", None)
    (tmp_path / "studies").symlink_to(store / "studies")
    (tmp_path / "index.json").write_text(json.dumps(index))
    expected = told(store)
    if version < 3:  # frames over time are a cine where the name does not say
        expected |= {(study, "lax_3c"): ("lax_3c", ["cine"] * 3) for study in "ab"} | {("b", "odd"): (None, ["cine"])}
    assert told(tmp_path) == expected


def test_records_hold_no_more_than_before(store):
    """So an older program reads the store; and a record with keys of a later one is read."""
    index = json.loads((store / "index.json").read_text())
    assert index["version"] == 3
    record = index["studies"]["a"]["lge_sax"]
    assert set(record) == {"file", "shape", "spacing_mm", "frame_time_ms", "sha256", "source", "channels", "labels"}
    assert make_info("there", record | {"of a later version": 1}) == make_info("there", record)


def test_inspect(store):
    text = describe(CineStore(store))
    lines = text.splitlines()
    stored = np.load(store / "studies/a/sax.npy", mmap_mode="r").shape[3]
    sax = 8 * stored
    assert lines[0].startswith(f"{store}: 2 studies, 2 cines; 4 single volumes; 2 sets of channels; 2 image series, ")
    assert (f"  2D images: {sax} cine in SAX, 2 cine in LAX 3C, {sax // 4} LGE in SAX, 1 T1 map in LAX 4C, "
            f"{sax * 3 // 4} T2 map in SAX, 2 T2w in LAX 3C, 2 unknown sequence in LAX 3C, "
            f"{stored} unknown sequence in unknown plane") in lines  # fmt: skip
    of_views = [line for line in lines if line.partition(":")[0] in ("sax", "lax_3c", *OPTIONS["single"], "t2map_sax")]
    assert of_views == [
        "sax: 2 cines, SAX", "lax_3c: 2 sets of channels, cine + T2w + unknown sequence, LAX 3C",
        "lge_sax: 2 single volumes, LGE, SAX", "odd: 1 single volume, unknown sequence, unknown plane",
        "t1map_lax_4c: 1 single volume, T1 map, LAX 4C", "t2map_sax: 2 image series, T2 map, SAX",
    ]  # fmt: skip
    # what the numbers of these label maps mean is the user's choice; and a volume has no frames, times or motion
    at = lines.index("lge_sax: 2 single volumes, LGE, SAX")
    assert lines[at + 3 : at + 5] == ["  single volumes, no cine: LGE (2)", "  labels of 1 of 2 volumes: 1, 2, 3"]


def test_views_that_differ_between_studies_and_named_labels(store, tmp_path):
    index = json.loads((store / "index.json").read_text())
    del index["studies"]["b"]["lge_sax"]["channels"], index["sha256"]
    index["studies"] = {"a": {"sax": index["studies"]["a"]["sax"], "lge_sax": index["studies"]["a"]["lge_sax"]},
                        "b": {"lge_sax": index["studies"]["b"]["lge_sax"]}}  # fmt: skip
    index["prepare"] |= {"structures": {"1": "wall", "3": "LV"}}
    (tmp_path / "studies").symlink_to(store / "studies")
    (tmp_path / "index.json").write_text(json.dumps(index))
    text = describe(CineStore(tmp_path))
    assert "\nlge_sax: 1 single volume, LGE; 1 image series, LGE, SAX\n" in text
    assert "  labels of 1 of 2 studies: wall, 2, LV\n" in text
    index["prepare"] |= {"dataset": "emidec"}  # whose other labels are this project's
    (tmp_path / "index.json").write_text(json.dumps(index))
    assert "  labels of 1 of 2 studies: wall, MYO, LV\n" in describe(CineStore(tmp_path))
    del index["studies"]["a"]["lge_sax"]["labels"]["values"]  # as in older stores
    (tmp_path / "index.json").write_text(json.dumps(index))
    assert "  labels of 1 of 2 studies\n" in describe(CineStore(tmp_path))
