"""optical_flow, unrefined, held against OpenCV's Farneback on the synthetic heart and on real cines."""

import numpy as np
import pytest
import torch

from cinema_fast.data.formats.nifti import read_cine, read_nifti
from cinema_fast.kernels.optical_flow import FlowParams, optical_flow
from cinema_fast.kernels.optical_flow.operation import reasons
from cinema_fast.kernels.optical_flow.params import DEFAULT
from cinema_fast.phantom.study import make_study

cv2 = pytest.importorskip("cv2", reason="opencv is not installed (pip install opencv-python-headless)")
MYOCARDIUM = 2
UNREFINED = FlowParams(refine=0)
PARAMETERS = [
    UNREFINED,
    FlowParams(levels=4, pyr_scale=0.8, window=11, iterations=2, poly_n=5, poly_sigma=1.1, refine=0),
    FlowParams(levels=1, window=31, iterations=5, refine=0),
]


@pytest.fixture(params=["torch", "native"])
def way(request):
    if why := reasons(torch.empty(0)).get(request.param, list)():
        pytest.skip("; ".join(why))
    return request.param


def by_opencv(first, second, p=UNREFINED) -> np.ndarray:
    """(2, X, Y): OpenCV's x runs along columns, our Y."""
    flow = cv2.calcOpticalFlowFarneback(
        first, second, None, p.pyr_scale, p.levels, p.window, p.iterations, p.poly_n, p.poly_sigma, 0
    )
    return flow[..., ::-1].transpose(2, 0, 1)


def ours(frames: np.ndarray, way: str, params=UNREFINED, pairs="consecutive") -> np.ndarray:
    return optical_flow(torch.from_numpy(frames)[None], pairs, params=params, backend=way)[0].numpy()


def in_8_bits(image: np.ndarray) -> np.ndarray:
    low, high = np.percentile(image, [0.1, 99.5])
    return (np.clip((image - low) / (high - low), 0, 1) * 255).round().astype(np.uint8)


@pytest.fixture(scope="module")
def hearts():
    """Per view: frames (T, X, Y) uint8, pairs, their true displacement (P, 2, X, Y) in pixels, where myocardium is."""
    study = make_study(5, n_frames=12, size=160, in_plane_mm=1.6, n_slices=3)
    pairs, views = [(0, 1), (1, 2), (0, 3), (0, 4)], {}
    for view in ("sax", "lax_4c"):
        middle = (slice(None), slice(None), 1) if view == "sax" else (slice(None), slice(None))
        frames = np.ascontiguousarray(np.moveaxis(in_8_bits(study.images[view]), -1, 0)[(slice(None), *middle)])
        spacing = np.array(study.spacing_mm[view][:2]).reshape(2, 1, 1)
        truth = np.stack([study.displacement(view, a, b)[:2][(slice(None), *middle)] / spacing for a, b in pairs])
        labels = np.moveaxis(study.labels[view], -1, 0)[(slice(None), *middle)]
        views[view] = frames, pairs, truth, [labels[a] == MYOCARDIUM for a, _ in pairs]
    return views


@pytest.mark.parametrize("params", PARAMETERS, ids=["defaults", "scale 0.8", "one level"])
@pytest.mark.parametrize("view", ["sax", "lax_4c"])
def test_equals_opencv_on_the_synthetic_heart(way, hearts, view, params):
    frames, pairs, _, tissue = hearts[view]
    flow = ours(frames, way, params, pairs)
    for p, (a, b) in enumerate(pairs):
        difference = np.linalg.norm(flow[p] - by_opencv(frames[a], frames[b], params), axis=0)
        # the one rule that differs acts at the last row and column
        assert difference[tissue[p]].max() < 0.01 and difference.mean() < 0.01


@pytest.mark.parametrize("view", ["sax", "lax_4c"])
def test_motion_of_the_myocardium_is_found_better_than_by_opencv(way, hearts, view):
    frames, pairs, truth, tissue = hearts[view]
    flow = ours(frames, way, DEFAULT, pairs)
    for p, (a, b) in enumerate(pairs):
        error, theirs = (
            np.linalg.norm(found - truth[p], axis=0)[tissue[p]].mean()
            for found in (flow[p], by_opencv(frames[a], frames[b]))
        )
        still = np.linalg.norm(truth[p], axis=0)[tissue[p]].mean()
        assert error < 0.95 * theirs and error < 0.7 * still, (error, theirs, still)


@pytest.mark.parametrize("name", ["sax_4d_6slices", "Se8_2ch", "Se6_4ch_or_3ch", "Se10_rvot"])
def test_equals_opencv_on_real_cines(way, shared, name):
    """Stacks are given as they lie in a store, slices innermost, and moving tissue is where OpenCV sees 0.5 pixels."""
    if not (path := shared / "data/cine" / f"{name}.nii.gz").exists():
        pytest.skip(f"{path.name} is not beside this checkout")
    cine = read_cine(path, stack=name.startswith("sax"))
    frames = in_8_bits(np.stack([cine.frame(t) for t in (0, 1, 4, 8)]))  # (T, X, Y, Z)
    flow = ours(frames, way, pairs="reference")
    for z in range(frames.shape[-1]):
        for p in range(3):
            theirs = by_opencv(np.ascontiguousarray(frames[0, ..., z]), np.ascontiguousarray(frames[p + 1, ..., z]))
            difference = np.linalg.norm(flow[p, ..., z] - theirs, axis=0)
            moving = np.linalg.norm(theirs, axis=0) > 0.5
            assert moving.sum() > 100 and difference[moving].mean() < 0.01 and np.median(difference) < 1e-4


@pytest.mark.parametrize("name", ["acdc_sax", "mnms_sax", "mnms2_sax", "mnms2_lax_4c"])
def test_equals_opencv_from_end_diastole_to_end_systole(way, shared, name):
    """The largest motion that real frames have, in every third slice of a stack."""
    paths = [shared / "data/cmr" / f"{name}_{phase}.nii.gz" for phase in ("ed", "es")]
    if not all(path.exists() for path in paths):
        pytest.skip(f"{name} is not beside this checkout")
    ed, es = (read_nifti(path).data for path in paths)
    frames = np.ascontiguousarray(in_8_bits(np.stack([ed, es]))[..., ::3])
    flow = ours(frames, way)[0]
    for z in range(frames.shape[-1]):
        theirs = by_opencv(*(np.ascontiguousarray(frame[..., z]) for frame in frames))
        difference = np.linalg.norm(flow[..., z] - theirs, axis=0)
        moving = np.linalg.norm(theirs, axis=0) > 0.5
        assert moving.sum() > 100 and difference[moving].mean() < 0.01 and np.median(difference) < 1e-4
