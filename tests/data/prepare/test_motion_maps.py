"""Motion maps of a store: what they show, how they are stored, and who gets one."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from cine_files import VIEWS, grid_mm, write_study
from prepared import content, run

from cinema_fast.cli import main
from cinema_fast.data.prepare import motion
from cinema_fast.data.prepare.motion import motion_levels
from cinema_fast.data.prepare.prepare import PrepareConfig, prepare
from cinema_fast.data.store.clips import ClipStore, centre
from cinema_fast.data.store.store import CineStore, StoreError
from cinema_fast.kernels import optical_flow
from cinema_fast.phantom.cohort import write_cohort


@pytest.fixture
def prepared(tmp_path):
    """Sources of two studies and a store of them with motion maps."""
    for n in range(2):
        write_study(tmp_path / "src", f"p{n}", seed=n)
    report = run(tmp_path / "src", tmp_path / "store", motion=True)
    assert (report.prepared, report.motion_maps, report.exit_code) == (2, 6, 0)
    assert "; the store holds 2 studies; 6 motion maps made" in str(report)
    return tmp_path / "src", tmp_path / "store"


def test_a_map_is_the_mean_length_of_the_flow_in_8_bit(prepared):
    """Against the flow itself, in float64, with the largest pixel at 255."""
    store = CineStore(prepared[1])
    for study in store.ids:
        for view in store.views(study):
            info = store.info(study, view)
            flow = optical_flow(torch.from_numpy(store.read_frames(study, view, range(4)))[None], backend="torch")
            expected = flow[0].double().square().sum(1).sqrt().mean(0).numpy()
            found = store.read_motion(study, view)
            assert found.shape == info.shape[1:] and found.dtype == np.uint8 and found.max() == 255
            assert info.motion.max_px == pytest.approx(expected.max(), rel=1e-3) and info.motion.max_px > 0.1
            np.testing.assert_allclose(found * (info.motion.max_px / 255), expected, atol=0.51 / 255 * expected.max())


def test_files_and_records(prepared):
    path = prepared[1]
    index = json.loads((path / "index.json").read_text())
    records = json.loads((path / "studies/p1/study.json").read_text())
    store = CineStore(path)
    assert index["version"] == 3
    for view in VIEWS:
        file = f"studies/p1/{view}.motion.npy"
        assert index["studies"]["p1"][view]["motion"] == records[view]["motion"]
        assert set(records[view]["motion"]) == {"file", "sha256", "max_px"} and records[view]["motion"]["file"] == file
        assert store.info("p1", view).motion.path == f"{path}/{file}"
        assert records[view]["motion"]["sha256"] == hashlib.sha256((path / file).read_bytes()).hexdigest()
        assert (path / file).stat().st_size == 128 + np.prod(store.info("p1", view).shape[1:])
        np.testing.assert_array_equal(np.load(path / file), store.read_motion("p1", view))
    assert sorted(p.name for p in path.iterdir()) == [".lock", "failures.jsonl", "index.json", "studies"]
    assert len(list((path / "studies/p1").iterdir())) == 7


@pytest.mark.parametrize("frames", [np.full((1, 40, 40, 3), 7), np.full((4, 40, 40), 9), np.zeros((3, 33, 9, 2))])
def test_without_motion_the_map_is_zero(frames):
    levels, max_px = motion_levels(frames.astype(np.uint8))
    assert levels.shape == frames.shape[1:] and levels.dtype == np.uint8 and not levels.any() and max_px == 0.0


@pytest.mark.slow
def test_any_number_of_workers_adds_the_same_maps_to_a_store(prepared, tmp_path):
    """Nothing is prepared again for it, and what it then holds is what preparing at once with maps gives."""
    src, at_once = prepared
    run(src, tmp_path / "store2")
    inode = (tmp_path / "store2/studies/p1/sax.npy").stat().st_ino
    assert "motion" not in str(run(src, tmp_path / "store2"))
    assert all(CineStore(tmp_path / "store2").info("p0", view).motion is None for view in VIEWS)
    report = run(src, tmp_path / "store2", motion=True, workers=2)
    assert (report.prepared, report.unchanged, report.motion_maps, report.exit_code) == (0, 2, 6, 0)
    assert content(tmp_path / "store2") == content(at_once)
    assert (tmp_path / "store2/studies/p1/sax.npy").stat().st_ino == inode
    again = run(src, at_once, motion=True)
    assert (again.unchanged, again.motion_maps) == (2, 0) and content(tmp_path / "store2") == content(at_once)


def test_a_store_of_version_1_is_given_maps(prepared, tmp_path):
    """Its index held what study.json holds, and study.json no options."""
    src, at_once = prepared
    path = tmp_path / "store1"
    run(src, path)
    studies = {}
    for study in ("p0", "p1"):
        file = path / f"studies/{study}/study.json"
        studies[study] = json.loads(file.read_text())
        for record in studies[study].values():
            del record["prepare"]
        file.write_text(json.dumps(studies[study]))
    index = json.loads((path / "index.json").read_text())
    (path / "index.json").write_text(json.dumps({**index, "version": 1, "studies": studies}))
    assert CineStore(path).info("p0", "sax").motion is None
    assert run(src, path, motion=True).motion_maps == 6
    assert (path / "index.json").read_bytes() == (at_once / "index.json").read_bytes()


def test_studies_added_or_replaced_without_maps_are_counted(prepared, tmp_path):
    src, path = prepared
    write_study(src, "p1", views=("sax",), n_frames=6)  # another cine: the study's folder is replaced
    write_study(src, "q", views=("lax_2c",))
    report = run(src, path)
    assert (report.prepared, report.without_motion, report.motion_maps, report.exit_code) == (2, 2, None, 0)
    assert "2 studies without a motion map of every view: give the same command with --motion" in str(report)
    store = CineStore(path)
    assert store.info("p0", "sax").motion and not store.info("p1", "lax_2c").motion
    with pytest.raises(StoreError, match=r"study 'q' has no motion map of 'lax_2c'; `cinema-fast prepare .*--motion"):
        store.read_motion("q", "lax_2c")
    report = run(src, path, motion=True)
    assert (report.motion_maps, report.without_motion) == (4, 0)
    store = CineStore(path)
    expected, _ = motion_levels(store.read_frames("p1", "sax", range(6)))
    np.testing.assert_array_equal(store.read_motion("p1", "sax"), expected)


def test_a_plane_of_a_clip_store_has_the_map_of_its_slice(prepared):
    cines = CineStore(prepared[1])
    store = ClipStore(cines)
    for number, (view, at) in enumerate(store.planes("p0")):
        expected = cines.read_motion("p0", view)
        expected = centre(expected if at is None else expected[:, :, at], (24, 48))
        np.testing.assert_array_equal(store.read_motion("p0", number, (5, 24, 48)), expected)
        assert expected.any()


def test_one_process_where_there_is_a_gpu(prepared, tmp_path, monkeypatch):
    """However many workers are asked for."""
    devices = []
    monkeypatch.setattr(motion, "_gpu_kernels_run", lambda: True)
    monkeypatch.setattr(
        motion, "motion_levels", lambda frames, device: (devices.append(device), (frames[0] // 2, 1.5))[1]
    )
    assert run(prepared[0], tmp_path / "gpu", motion=True, workers=2).motion_maps == 6
    assert devices == ["cuda"] * 6  # in this process, or they would not be seen here


def test_workers_of_the_frames_need_no_torch():
    code = "import sys; from cinema_fast.data.prepare import motion, prepare; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_the_command(tmp_path, capsys):
    write_study(tmp_path / "src", "p", views=("sax",))
    arguments = ["prepare", str(tmp_path / "src"), str(tmp_path / "store"), "--workers", "1"]
    assert main([*arguments, "--motion"]) == 0 and "1 motion map made" in capsys.readouterr().out
    assert main(["verify", str(tmp_path / "store")]) == 0


def on_heart(store: CineStore, src: Path, study: str, view: str) -> np.ndarray:
    """(X, Y[, Z]) bool: whether a stored pixel lies on the heart in any frame, by the nearest pixel of the labels."""
    info, labels = store.info(study, view), nib.load(src / f"labels/{study}_{view}.nii.gz")
    shape = (*info.shape[1:], 1)[:3]
    mm = np.c_[grid_mm(shape, info.affine).reshape(-1, 3), np.ones(np.prod(shape))]
    x, y, z = np.rint(np.linalg.solve(labels.affine, mm.T)[:3]).astype(int)
    heart = np.pad((np.asarray(labels.dataobj) > 0).any(-1), [(0, 1), (0, 1), (0, 1)])  # beyond the image: no heart
    inside = [np.where((i >= 0) & (i < n), i, -1) for i, n in zip((x, y, z), heart.shape)]
    return heart[tuple(inside)].reshape(info.shape[1:])


def test_the_heart_moves_more_than_what_is_around_it(tmp_path):
    """Synthetic hearts with their noise: on the heart at least twice the motion of elsewhere, in every view."""
    write_cohort(tmp_path / "src", 2, 5, n_frames=8, n_slices=4, in_plane_mm=2.5)
    config = PrepareConfig(
        tmp_path / "src", tmp_path / "store", sax_size=(96, 96, 4), lax_size=(96, 96), sax_spacing=(2, 2, 10),
        lax_spacing=(2, 2), workers=1, motion=True,
    )  # fmt: skip
    assert prepare(config, progress=False).motion_maps == 8
    store = CineStore(tmp_path / "store")
    for study in store.ids:
        for view in store.views(study):
            heart, pixels = on_heart(store, tmp_path / "src", study, view), store.read_motion(study, view).astype(float)
            assert 0.05 < heart.mean() < 0.6
            assert pixels[heart].mean() > 2 * pixels[~heart].mean(), (study, view)


def test_the_real_heart_moves_more_than_what_is_around_it(shared, tmp_path):
    """Two long axes. There are no labels, but a disc of 5 cm about the middle of each image holds the heart."""
    config = PrepareConfig(
        shared / "data/cine", tmp_path / "store", pattern="{view}.nii.gz", workers=1, motion=True,
        aliases=("lax_2c=Se8_2ch", "lax_4c=Se6_4ch_or_3ch"),
    )  # fmt: skip
    assert prepare(config, progress=False).motion_maps == 2
    store = CineStore(tmp_path / "store")
    for view in store.views("cine"):
        pixels = store.read_motion("cine", view).astype(float)
        near = np.hypot(*np.meshgrid(*(np.arange(256) - 127.5,) * 2)) < 50  # mm
        assert pixels[near].mean() > 2 * pixels[~near].mean(), view
        assert 0.3 < store.info("cine", view).motion.max_px < 30
