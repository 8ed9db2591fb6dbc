"""Tables of studies and lists of landmarks: what is written is read, what cannot be is named by line and column."""

import csv
import json

import numpy as np
import pytest
from cine_files import BALL, write_study
from hypothesis import given, settings
from hypothesis import strategies as st
from prepared import run

from cinema_fast.common.tables import MOST, check_matches, read_landmarks, read_table
from cinema_fast.data.prepare.prepare import PrepareConfig, prepare
from cinema_fast.data.store.landmarks import check_landmarks, landmark_voxels
from cinema_fast.data.store.store import CineStore
from cinema_fast.phantom.cohort import write_cohort
from cinema_fast.phantom.study import LANDMARKS, make_study

WORDS = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), max_size=8).map(str.strip)
NAMES = st.lists(WORDS.filter(bool), min_size=1, max_size=3, unique=True)


@settings(max_examples=40)
@given(studies=NAMES, columns=NAMES, data=st.data(), ends=st.sampled_from(["\n", "\r\n", "\r"]),
       mark=st.booleans(), blank=st.booleans(), quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
def test_what_is_written_is_read(tmp_path_factory, studies, columns, data, ends, mark, blank, quoting):
    """Against Python's own writer: any names, commas, quotes, line ends, byte order mark, empty lines."""
    columns = [name for name in columns if name != "study"]
    rows = {study: {name: data.draw(WORDS) for name in columns} for study in studies}
    path = tmp_path_factory.getbasetemp() / "written.csv"
    with path.open("w", newline="", encoding="utf-8-sig" if mark else "utf-8") as file:
        table = csv.DictWriter(file, [*columns, "study"], lineterminator=ends, quoting=quoting)
        table.writeheader()
        for study, row in rows.items():
            table.writerow({"study": study, **row})
            file.write(ends * blank)
    table = read_table(path)
    assert table.rows == rows and table.columns == tuple(columns)
    for name in columns:
        assert table.values(name) == {study: row[name] for study, row in rows.items() if row[name]}


@given(values=st.lists(st.none() | st.floats(-MOST, MOST), min_size=1, max_size=9))
def test_numbers_are_read_exactly(tmp_path_factory, values):
    path = tmp_path_factory.getbasetemp() / "numbers.csv"
    path.write_text("study,ef\n" + "".join(f"s{n}, {'' if v is None else repr(v)} \n" for n, v in enumerate(values)))
    assert read_table(path).numeric("ef") == {f"s{n}": v for n, v in enumerate(values) if v is not None}


def written(tmp_path, text: str | bytes):
    path = tmp_path / "t.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(("text", "message"), [
    ("", r"no column 'study' \(it has nothing\)"),
    ("study,ef\n", "no studies in it"),
    ("Study,ef\na,1\n", r"no column 'study'; did you mean 'Study'\? \(it has 'Study', 'ef'\)"),
    ("study;ef\na;1\n", "fields are separated by semicolons; save the table with commas"),
    ("study\tef\na\t1\n", "separated by tabs"),
    ("study,ef\na,1\n\nb,2\na,3\n", "line 5: the study 'a' is on line 2 already"),
    ("study,ef\n,1\n", "line 2: no study name"),
    ("study,ef\na,1,2\n", r"line 2: 3 fields, expected 2 \(study, ef\)"),
    ("study,ef\na\n", "line 2: 1 fields, expected 2"),
    ("study,ef,ef\na,1,2\n", "two columns are named 'ef'"),
    ('study,ef\na,"1\n', "line 2: unexpected end of data"),
    (b"study,ef\nM\xfcller,1\n", "byte 10 is not UTF-8"),
])  # fmt: skip
def test_tables_that_cannot_be_read(tmp_path, text, message):
    path = written(tmp_path, text)
    with pytest.raises(ValueError, match=message) as caught:
        read_table(path)
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize("value", ["high", "nan", "inf", "1_000", "1;5", "0x10", "5 %"])
def test_values_that_are_no_numbers(tmp_path, value):
    table = read_table(written(tmp_path, f"id,ef\na,\nb,{value}\n"), "id")
    with pytest.raises(ValueError, match=rf"t\.csv, line 3: ef is '{value}', not a number"):
        table.numeric("ef")
    assert table.values("ef") == {"b": value}
    with pytest.raises(ValueError, match="no column 'EF'; did you mean 'ef'"):
        table.numeric("EF")


def test_what_matches_in_part_is_reported(tmp_path, capsys):
    path, listed = tmp_path / "t.csv", [f"s{n}" for n in range(3, 12)]
    check_matches(path, listed, listed[::-1], "store")
    assert capsys.readouterr().err == ""
    check_matches(path, listed, [f"s{n}" for n in range(10)], "store")
    assert capsys.readouterr().err == (
        f"{path}: it lists 7 of the 10 studies of store; missing from the table (3): 's0', 's1', 's2'; only in "
        "the table (2 of 9): 's10', 's11'\n")
    check_matches(path, listed, ["s3"], "store", whole=[f"s{n}" for n in range(20)])
    assert capsys.readouterr().err == ""
    check_matches(path, listed, ["s3"], "store")
    assert "only in the table (8 of 9): 's4', 's5', 's6', 's7', 's8', ...\n" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"none of the 2 studies of store is in it: they are 'a', 'b'; it has 's3', '"):
        check_matches(path, listed, ["a", "b"], "store")


def test_views_that_a_store_has_not_are_reported(tmp_path, capsys):
    points = read_landmarks(written(tmp_path, HEADER + "".join(
        f"a,{view},{t},apex,1,2,3\n" for view in ("lax_4c", "lax_3c", "4ch") for t in (0, 1))))  # fmt: skip
    check_landmarks(tmp_path / "t.csv", points, {"a": ("sax", "lax_4c")}, ["a"], tmp_path / "store")
    assert capsys.readouterr().err == (
        f"{tmp_path}/t.csv: no study of {tmp_path}/store has the view 'lax_3c' (2 lines), '4ch' (2 lines): left out; "
        "its views are sax, lax_4c\n")
    with pytest.raises(ValueError, match=r"view '4ch' \(2 lines\) is spelled '4_CH' in .*store: correct the t"):
        check_landmarks(tmp_path / "t.csv", points, {"a": ("4_CH",)}, ["a"], tmp_path / "store")


HEADER = "study,view,frame,landmark,x_mm,y_mm,z_mm\n"


@pytest.mark.parametrize(("text", "message"), [
    (HEADER, "no landmarks in it"),
    (HEADER.replace("x_mm", "x"), "no column 'x_mm'"),
    (HEADER + "a,lax_4c,0,apex,1,2\n", "line 2: 6 fields"),
    (HEADER + "a,lax_4c,0,apex,1,2,\n", "line 2: z_mm is '', not a number"),
    (HEADER + "a,lax_4c,-1,apex,1,2,3\n", "line 2: frame is '-1', not a whole number from 0"),
    (HEADER + "a,lax_4c,1.0,apex,1,2,3\n", "line 2: frame is '1.0'"),
    (HEADER + "a,,0,apex,1,2,3\n", "line 2: no view"),
    (HEADER + "a,lax_4c,0,apex,1,2,3\n" * 2, "line 3: 'apex' of frame 0 of 'a', 'lax_4c' is there already"),
])  # fmt: skip
def test_landmarks_that_cannot_be_read(tmp_path, text, message):
    with pytest.raises(ValueError, match=rf"t\.csv.*{message}"):
        read_landmarks(written(tmp_path, text))


def test_a_landmark_lies_where_its_tissue_is_stored(tmp_path):
    """The bright ball of the cines, at a known place in scanner mm."""
    write_study(tmp_path / "src", "p0")
    run(tmp_path / "src", tmp_path / "store")
    store = CineStore(tmp_path / "store")
    for view, n in (("sax", 3), ("lax_2c", 2), ("lax_4c", 2)):
        voxels = landmark_voxels(store.info("p0", view), BALL)
        frame = store.read_frame("p0", view, 0).astype(float)
        frame[frame < 128] = 0
        middle = np.array([(index * frame).sum() for index in np.indices(frame.shape)]) / frame.sum()
        assert voxels.shape == (1, n) and voxels.dtype == np.float64
        np.testing.assert_allclose(voxels[0, :2], middle[:2], atol=0.6)


@pytest.fixture(scope="module")
def hearts(tmp_path_factory):
    """(folder of a cohort of 4, its store with labels)."""
    folder = tmp_path_factory.mktemp("hearts")
    write_cohort(folder / "src", 4, 3, n_frames=4, in_plane_mm=2.0)
    config = PrepareConfig(folder / "src", folder / "store", labels="labels/{id}_{view}.nii.gz", workers=1)
    assert prepare(config, progress=False).labelled == 4
    return folder / "src", CineStore(folder / "store")


def test_landmarks_of_a_cohort(hearts):
    src, store = hearts
    found = read_landmarks(src / "landmarks.csv")
    assert list(found) == store.ids
    truth = make_study((3, 1), n_frames=4, in_plane_mm=2.0).landmarks_mm
    for view, points in truth.items():
        assert list(found[store.ids[1]][view]) == [0, 1, 2, 3]
        for t in range(4):
            landmarks = found[store.ids[1]][view][t]
            assert tuple(landmarks) == LANDMARKS
            np.testing.assert_allclose(np.stack(list(landmarks.values())), points[t], atol=5.1e-5)
    for study in store.ids:  # between the annulus and the apex is the cavity
        for view in truth:
            points = np.stack(list(found[study][view][2].values()))
            (x, y), = landmark_voxels(store.info(study, view), points.mean(0)).round().astype(int)
            assert store.read_labels(study, view, 2)[x, y] == 3


def test_volumes_of_stored_labels_are_the_true_ones(hearts):
    """A ventricle that ends in the middle of a slice is drawn, and then stored, up to half a slice too long or short:
    one slice in all, at its widest. Such errors have a standard deviation of 3 % a heart (measured on 16 others, most
    of it by the slices of 10 mm), so that the mean of four is within 6 %."""
    src, store = hearts
    errors = []
    for study, truth in json.loads((src / "truth.json").read_text())["studies"].items():
        voxel_ml = np.prod(store.info(study, "sax").spacing_mm) / 1000
        for t in range(4):
            cavity = store.read_labels(study, "sax", t) == 3
            ml = cavity.sum() * voxel_ml
            assert abs(ml - truth["lv_ml"][t]) < cavity.sum((0, 1)).max() * voxel_ml
            errors.append(ml / truth["lv_ml"][t] - 1)
    assert len(errors) == 16 and abs(np.mean(errors)) < 0.06
