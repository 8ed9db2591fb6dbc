"""What public data sets need of `prepare`, by options: label maps of other values, single volumes and channels, stacks
under other names, ED and ES."""

import gzip
import json

import numpy as np
import pytest
from prepared import run
from published_trees import AFFINE, LV, MYO, RV, frames, labels_at, renamed, write

from cinema_fast.cli import main
from cinema_fast.common.views import is_stack, plane_of
from cinema_fast.data.prepare.prepare_config import PrepareConfig
from cinema_fast.data.prepare.sources import NamePattern, parse_aliases
from cinema_fast.data.store.store import CineStore, StoreError

T = 6


@pytest.fixture
def src(tmp_path):
    """Two studies with cines, label maps of large values, and three volumes of one grid."""
    for n, study in enumerate(("a", "b")):
        write(tmp_path / f"src/{study}_sax.nii.gz", frames(T, n))
        drawn = np.stack([labels_at(t, T) for t in range(T)], axis=-1)
        write(tmp_path / f"src/labels/{study}_sax.nii.gz", renamed(drawn, {RV: 600, MYO: 200, LV: 65535}, np.uint16))
        for k, name in enumerate(("C0", "DE", "T2")):
            write(tmp_path / f"src/{study}_{name}.nii.gz", frames(T, 5 * n + k)[..., 0])
    return tmp_path / "src"


LABELS = {"labels": "labels/{id}_sax.nii.gz", "label_map": ("600=1", "200=2", "65535=3")}


def test_values_become_labels(src, tmp_path):
    report = run(src, tmp_path / "store", **LABELS)
    store = CineStore(tmp_path / "store")
    assert report.failures == [] and store.info("a", "sax").labels.values == (1, 2, 3)
    plain = np.stack([labels_at(t, T) for t in range(T)], axis=-1)
    for study in ("a", "b"):  # the same maps, written with this project's labels
        write(src / f"plain/{study}_sax.nii.gz", plain)
    run(src, tmp_path / "plain", labels="plain/{id}_sax.nii.gz")
    for t in range(T):
        np.testing.assert_array_equal(
            store.read_labels("a", "sax", t), CineStore(tmp_path / "plain").read_labels("a", "sax", t))
    index = json.loads((tmp_path / "store/index.json").read_text())
    assert index["prepare"]["label_map"] == {"200": 2, "600": 1, "65535": 3}
    assert PrepareConfig(src, tmp_path, **LABELS | {"label_map": ("0=0", "200=2")}).label_of == {200: 2}
    with pytest.raises(StoreError, match="label_map="):
        run(src, tmp_path / "store", **LABELS | {"label_map": ("600=3", "200=2", "65535=1")})
    assert run(src, tmp_path / "store", **LABELS | {"label_map": LABELS["label_map"][::-1]}).unchanged == 2


def test_a_value_outside_of_the_map_is_a_failure_of_its_labels(src, tmp_path):
    report = run(src, tmp_path / "store", **LABELS | {"label_map": ("200=2", "65535=3")})
    assert report.prepared == 2 and len(report.failures) == 2
    assert "holds the value 600, which is outside of the label map 200=2 65535=3" in report.failures[0].reason
    report = run(src, tmp_path / "other", labels=LABELS["labels"])
    assert "labels are whole numbers from 0 to 255; --label-map" in report.failures[0].reason


@pytest.mark.parametrize("pair", ["3", "0=1", "1=256", "70000=1", "a=b", "1=2=3", "-1=2"])
def test_pairs_that_are_no_label_map(pair, tmp_path):
    with pytest.raises(ValueError, match=f"--label-map {pair}: expected VALUE=LABEL, a value from 1 to 65535"):
        PrepareConfig(tmp_path, tmp_path / "store", labels="x", label_map=(pair,))
    with pytest.raises(ValueError, match="names the value 1 twice"):
        PrepareConfig(tmp_path, tmp_path / "store", labels="x", label_map=("1=2", "1=3"))
    with pytest.raises(ValueError, match="--label-map is for label files: give their pattern by --labels"):
        PrepareConfig(tmp_path, tmp_path / "store", label_map=("1=2",))


def test_channels_are_the_volumes_of_a_view(src, tmp_path):
    for study in ("a", "b"):
        write(src / f"gd/{study}.nii.gz", labels_at(0, T))
    report = run(src, tmp_path / "store", aliases=("lax_2c=none",), channels=("lge_sax=DE+C0+T2",),
                 labels="gd/{id}.nii.gz", motion=True)  # fmt: skip
    store = CineStore(tmp_path / "store")
    info = store.info("a", "lge_sax")
    assert info.channels == ("DE", "C0", "T2") and info.shape[0] == 3 and len(info.shape) == 4
    run(src, tmp_path / "single", aliases=("t2_sax=T2",), single=("t2_sax",), labels="gd/{id}.nii.gz")
    alone = CineStore(tmp_path / "single")
    assert alone.info("a", "t2_sax").channels == ("T2",) and alone.info("a", "t2_sax").labels.frames == (0,)
    np.testing.assert_array_equal(store.read_frame("a", "lge_sax", 2), alone.read_frame("a", "t2_sax", 0))
    np.testing.assert_array_equal(store.read_labels("a", "lge_sax", 0), alone.read_labels("a", "t2_sax", 0))
    # volumes do not move, so they have no motion map
    assert info.motion is None and store.info("a", "sax").motion is not None and report.motion_maps == 2


def test_missing_and_unlike_channels(src, tmp_path):
    (src / "b_DE.nii.gz").unlink()
    write(src / "a_T2.nii.gz", frames(T, 1)[:-2, ..., 0])
    report = run(src, tmp_path / "store", channels=("lge_sax=C0+DE+T2",))
    reasons = {failure.study: f"{failure.file}: {failure.reason}" for failure in report.failures}
    assert "b_C0.nii.gz, b_T2.nii.gz: lge_sax of 'b': no file of the channel DE" in reasons["b"]
    assert "a_T2.nii.gz: shape (22, 22, 4) or affine differs from that of a_C0.nii.gz" in reasons["a"]
    for wrong in ("C0", "sax=", "sax=C0+C0", "SAX=C0+DE"):
        with pytest.raises(ValueError, match=r"--channels .*: expected VIEW=SPELLING"):
            run(src, tmp_path / "none", channels=(wrong,))
    with pytest.raises(ValueError, match="--single odd: no such view; expected one of sax, lax_2c, lax_3c, lax_4c "):
        run(src, tmp_path / "none", single=("odd",))
    report = run(src, tmp_path / "cine", aliases=("odd=DE",))
    assert "not a cine: shape (24, 22, 4), expected (X, Y, Z, T) with at least 2 frames; a view of single " in (
        str(report))  # fmt: skip


def test_stacks_have_any_name(src, tmp_path):
    assert [is_stack(view) for view in ("sax", "lge_sax", "sax_t1", "lax_4c", "lge_lax_4c", "lge", "saxophone")] == [
        True, True, True, False, False, None, None]  # fmt: skip
    assert [plane_of(view) for view in ("t1_sax", "lge_lax_2c", "lge")] == ["sax", "lax_2c", None]
    run(src, tmp_path / "store", aliases=("lge=DE", "t1_sax=C0"), single=("lge", "t1_sax"))
    store = CineStore(tmp_path / "store")
    for view in ("lge", "t1_sax"):  # on the grid of stacks
        assert store.info("a", view).spacing_mm == (1.0, 1.0, 10.0) and len(store.info("a", view).shape) == 4
    write(src / "c_DE.nii.gz", frames(T, 1)[:, :, :1, 0])  # without a plane in its name, one slice is a single slice
    report = run(src, tmp_path / "store", aliases=("lge=DE", "t1_sax=C0"), single=("lge", "t1_sax"))
    assert report.prepared == 1 and len(CineStore(tmp_path / "store").info("c", "lge").shape) == 3


@pytest.mark.parametrize(
    ("pattern", "file", "study", "view"),
    [("{id}_{view}.nii.gz", "p_1_lge_sax.nii.gz", "p_1", "lge_sax"), ("{id}_{view}.nii.gz", "p_sax.nii.gz", "p", "sax"),
     ("{id}/{view}.nii.gz", "p/t2w_lax_4c.nii.gz", "p", "t2w_lax_4c"),
     ("{view}_{id}.nii.gz", "lge_sax_p.nii.gz", "p", "lge_sax"),
     # what the pattern itself says does not belong to the view
     ("{id}_lge_{view}.nii.gz", "p_lge_sax.nii.gz", "p", "sax"), ("{id}_sa{view}.nii.gz", "p_sax.nii.gz", "p", "x"),
     ("{id}/lge_{view}.nii.gz", "p/lge_sax.nii.gz", "p", "sax"), ("{id}_*_{view}.gz", "p_lge_sax.gz", "p", "sax"),
     ("{id}_lax_{view}.gz", "p_lax_2c.gz", "p", "2c"),
     ("*_{view}_{frame}_{id}.gz", "a_lge_sax_1_p.gz", "p", "lge_sax")],
)  # fmt: skip
def test_the_longest_spelling_that_fits_is_the_view(pattern, file, study, view):
    found = NamePattern(pattern, parse_aliases(("x=x", "lax_2c=2c"))).fields(file)
    assert (found["id"], found["view"]) == (study, view)


def test_views_of_sequences_are_known_by_their_names(src, tmp_path):
    """`lge_sax` beside `sax`: both end alike. One with several frames is a series over time, which is no cine."""
    for study in ("a", "b"):
        write(src / f"{study}_lge_sax.nii.gz", frames(T, 7)[..., 0])
        write(src / f"{study}_t1map_lax_4c.nii.gz", frames(T, 8, (24, 22, 1)))
    write(src / "c_t2w_sax.nii.gz", frames(T, 9)[..., :1])
    (src / "d_t2w_sax.nii.gz").write_bytes(b"no image")
    damaged = bytearray(gzip.decompress((src / "c_t2w_sax.nii.gz").read_bytes()))
    damaged[70:72] = (1234).to_bytes(2, "little")  # the datatype
    (src / "e_lge_sax.nii.gz").write_bytes(gzip.compress(damaged))
    report = run(src, tmp_path / "store")
    store = CineStore(tmp_path / "store")
    assert [(failure.study, failure.view) for failure in report.failures] == [("d", "t2w_sax"), ("e", "lge_sax")]
    assert "unknown datatype 1234" in report.failures[1].reason
    of_two = ("sax", "lge_sax", "t1map_lax_4c")
    assert {study: store.views(study) for study in store.ids} == {"a": of_two, "b": of_two, "c": ("t2w_sax",)}
    infos = [store.info("a", view) for view in of_two] + [store.info("c", "t2w_sax")]
    assert [(info.sequences, info.plane, info.channels, info.shape[0]) for info in infos] == [
        (("cine",), "sax", (), T), (("lge",), "sax", ("lge_sax",), 1), (("t1map",), "lax_4c", (), T),
        (("t2w",), "sax", ("t2w_sax",), 1),
    ]  # fmt: skip
    (src / "phases.csv").write_text("study,ed,es\na,0,2\nb,0,2\n")  # ED and ES are of cines
    for prepared, unchanged in ((2, 1), (0, 3)):
        report = run(src, tmp_path / "store", phases=src / "phases.csv")
        assert (report.prepared, report.unchanged) == (prepared, unchanged)
    store = CineStore(tmp_path / "store")
    assert [store.info("a", view).phases for view in of_two] == [(0, 2), None, None]


def test_spacing_as_scanned(src, tmp_path):
    run(src, tmp_path / "store", sax_spacing=(0.0, 0.0, 10.0))
    info = CineStore(tmp_path / "store").info("a", "sax")
    assert info.spacing_mm == (2.0, 2.0, 10.0)
    np.testing.assert_allclose(np.linalg.norm(info.affine[:3, :3], axis=0), (2, 2, 10), rtol=1e-5)
    with pytest.raises(ValueError, match=r"--sax-spacing .*must be positive, or 0"):
        run(src, tmp_path / "none", sax_spacing=(1.0, 1.0, -1.0))


def test_ed_and_es_from_a_table_from_names_and_from_labels(src, tmp_path):
    path = tmp_path / "phases.csv"
    path.write_text("study,ed,es\na,1,4\nb,0,9\n")
    report = run(src, tmp_path / "store", phases=path)
    store = CineStore(tmp_path / "store")
    assert store.info("a", "sax").phases == (1, 4) and store.info("b", "sax").phases is None
    assert "phases.csv, line 3: ES is frame 9, counted from 0, and the cine has 6 frames" in report.failures[0].reason
    path.write_text("study,ed,es\na,1,3\nb,0,5\n")  # corrected: only what changed is prepared again
    report = run(src, tmp_path / "store", phases=path)
    assert (report.prepared, report.failures) == (2, [])
    assert [CineStore(tmp_path / "store").info(study, "sax").phases for study in "ab"] == [(1, 3), (0, 5)]
    assert run(src, tmp_path / "store", phases=path).unchanged == 2
    assert run(src, tmp_path / "store").unchanged == 2  # what is known stays known
    assert [CineStore(tmp_path / "store").info(study, "sax").phases for study in "ab"] == [(1, 3), (0, 5)]
    path.write_text("study,ed,es\na,1.5,3\nb,0,5\n")
    with pytest.raises(ValueError, match=r"phases.csv, line 2: ed '1.5', es '3'; expected frame numbers from 0"):
        run(src, tmp_path / "store", phases=path)
    run(src, tmp_path / "drawn", **LABELS)  # of the labelled frames, the smallest LV is in the middle of the cycle
    assert CineStore(tmp_path / "drawn").info("a", "sax").phases == (0, T // 2)
    for frame, t in (("ED", 0), ("ES", 3)):
        write(src / f"pair/c_sax_{frame}.nii.gz", frames(T, 3)[..., t])
    run(src / "pair", tmp_path / "pair", pattern="{id}_{view}_{frame}.nii.gz")
    assert CineStore(tmp_path / "pair").info("c", "sax").phases == (0, 1)


def test_a_store_of_version_2_goes_on(src, tmp_path):
    """It has no phases and no channels; a new study is added, and the index is of version 3 then."""
    run(src, tmp_path / "store", aliases=("lax_2c=none",))
    index = tmp_path / "store/index.json"
    index.write_text(index.read_text().replace('"version": 3', '"version": 2'))
    assert CineStore(tmp_path / "store").ids == ["a", "b"]
    write(src / "c_sax.nii.gz", frames(T, 7), AFFINE)
    report = run(src, tmp_path / "store", aliases=("lax_2c=none",))
    assert (report.prepared, report.unchanged) == (1, 2) and json.loads(index.read_text())["version"] == 3


def test_damaged_phases_and_channels_are_refused(src, tmp_path):
    run(src, tmp_path / "store", channels=("lge_sax=C0+DE+T2",), **LABELS)
    index = tmp_path / "store/index.json"
    whole = index.read_text()
    for old, new in ((f'"es": {T // 2}', '"es": 99'), ('["C0", "DE", "T2"]', '["C0", "DE"]')):
        assert old in whole
        index.write_text(whole.replace(old, new))
        with pytest.raises(StoreError, match=r"the record of study 'a', view .* is damaged"):
            CineStore(tmp_path / "store")


def test_help_names_the_data_sets(capsys):
    with pytest.raises(SystemExit):
        main(["prepare", "--help"])
    assert "acdc,mnms,mnms2,kaggle,rescan,landmark,emidec,myops2020" in "".join(capsys.readouterr().out.split())
