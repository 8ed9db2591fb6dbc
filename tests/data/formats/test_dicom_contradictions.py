"""DICOM whose headers contradict each other, or are cut: resolved by the rules of how-to/preparing.md, or refused."""

import json

import numpy as np
import pytest
from cine_files import affine_of, ball_cine
from marks import slow

pytest.importorskip("pydicom", reason="the extra dicom is not installed")
from dicom_ball import assert_same
from dicom_files import write_enhanced, write_series
from prepared import run
from pydicom import Dataset

from cinema_fast.data.formats.cine import CineError
from cinema_fast.data.formats.dicom_cine import read_dicom_cine
from cinema_fast.data.store.store import CineStore

SHAPE = (40, 36, 3)
AFFINE = affine_of((0.1, 0.2, 1.0), (1.5, 1.3, 8.0), (0, 0, 20), SHAPE)
DATA = ball_cine(SHAPE, AFFINE, n_frames=10)
PHASES = 4095 - DATA


def typed(*values, component=None):
    def change(dataset, z, t):
        dataset.ImageType = list(values)
        if component:
            dataset.ComplexImageComponent = component
    return change


@pytest.mark.parametrize("phase", [
    slow(typed("ORIGINAL", "PRIMARY", "P", "ND")), slow(typed("ORIGINAL", "PRIMARY", "PHASE MAP", "P", "FFE")),
    typed("ORIGINAL", "PRIMARY", "M", component="PHASE"), slow(typed("ORIGINAL", "PRIMARY", "I_FFE", "I", "FFE")),
])  # fmt: skip
@pytest.mark.parametrize("one_series", [slow(False), True])
def test_phase_images_beside_magnitudes_are_left_out_and_reported(tmp_path, phase, one_series):
    magnitude = typed("ORIGINAL", "PRIMARY", "M", "IN_PHASE")  # a word of Dixon's, not a phase image
    series = {"series": "1.2.7"} if one_series else {}
    write_series(tmp_path / "src/m", DATA, AFFINE, change=magnitude, **series)
    write_series(tmp_path / "src/p", PHASES, AFFINE, change=phase, first=100, number=1 if one_series else 2, **series)
    write_series(tmp_path / "alone", DATA, AFFINE)
    report = run(tmp_path / "src", tmp_path / "store")
    assert (report.failures, report.exit_code) == ([], 0)
    assert "left out (phase, real or imaginary images): 1 series 'cine SAX'" in str(report)
    assert "sax: 1 series 'cine SAX'" in str(report)
    run(tmp_path / "alone", tmp_path / "other")
    stores = [CineStore(tmp_path / name) for name in ("store", "other")]
    frames = [store.read_frames(store.ids[0], "sax", range(10)) for store in stores]
    np.testing.assert_array_equal(*frames)


def test_phase_images_in_an_enhanced_file(tmp_path):
    def mixed(dataset):
        dataset.ImageType, dataset.ComplexImageComponent = ["ORIGINAL", "PRIMARY", "CARDIAC", "NONE"], "MIXED"
        for n, item in enumerate(dataset.PerFrameFunctionalGroupsSequence):
            kind = Dataset()
            kind.FrameType = ["ORIGINAL", "PRIMARY", "CARDIAC", "NONE"]
            kind.ComplexImageComponent = "PHASE" if n % 2 else "MAGNITUDE"
            item.MRImageFrameTypeSequence = [kind]

    both = np.stack([DATA, PHASES], axis=3).reshape(*SHAPE, 20) // 2 * 2
    order = [(z, t) for z in range(3) for t in range(20)]
    path = write_enhanced(tmp_path / "src/e.dcm", both, AFFINE, order=order, change=mixed)
    assert_same(read_dicom_cine([path], stack=True), both[..., ::2], AFFINE, frame_ms=80.0, slope=2.0, inter=-5.0)
    report = run(tmp_path / "src", tmp_path / "store")
    assert report.exit_code == 0 and {reason for _, _, reason in report.series} == {
        "", "phase, real or imaginary images"}
    phases = write_series(tmp_path / "p", DATA, AFFINE, change=typed("ORIGINAL", "PRIMARY", "P"))
    with pytest.raises(CineError, match="no magnitude images"):
        read_dicom_cine(phases, stack=True)


def test_a_study_of_two_patients_is_refused(tmp_path):
    write_series(tmp_path / "src/a", DATA, AFFINE, patient="A")
    write_series(tmp_path / "src/b", DATA[:, :, :1], AFFINE, patient="B", description="4CH", number=2)
    write_series(tmp_path / "src/c", DATA[:, :, :1], AFFINE, study="1.9", patient="C", description="4CH")
    write_series(tmp_path / "src/d", DATA, AFFINE, study="1.9", patient="", number=2)  # nobody says it is another
    report = run(tmp_path / "src", tmp_path / "store")
    (failure,) = report.failures
    assert failure.study.startswith("A_") and failure.file.startswith("b/") and report.exit_code == 1
    assert "one StudyInstanceUID for 2 patients (PatientID 'A' in 30 files, 'B' in 10 files)" in failure.reason
    assert "left out (several patients in its study): 1 series '4CH'" in str(report)
    store = CineStore(tmp_path / "store")
    assert [(study[:2], store.views(study)) for study in store.ids] == [("C_", ("sax", "lax_4c"))]


def times(time, rr=400.0):
    """Sets what `time(z, t)` says as trigger times, and the heart's cycle."""
    def change(dataset, z, t):
        dataset.TriggerTime = time(z, t)
        if rr:
            dataset.NominalInterval = rr
    return change


def test_frames_before_the_r_wave_end_the_cycle(tmp_path):
    early = times(lambda z, t: 40.0 * t - 80)
    paths = write_series(tmp_path / "src", DATA, AFFINE, change=early)
    cine = read_dicom_cine(paths, stack=True)
    assert_same(cine, np.roll(DATA, -2, axis=3), AFFINE)
    assert cine.remark == "2 of 10 frames lie before the R wave and were moved to the end of the cycle"
    # the same cycle with the numbers of a scanner that counts from the R wave
    wrapped = write_series(tmp_path / "w", np.roll(DATA, -2, axis=3), AFFINE,
                           change=times(lambda z, t: 40.0 * t if t < 8 else 40.0 * t - 400))
    assert_same(read_dicom_cine(wrapped, stack=True), np.roll(DATA, -2, axis=3), AFFINE)
    for _ in range(2):  # a store that is there already says so too
        report = run(tmp_path / "src", tmp_path / "store")
        assert report.exit_code == 0 and f"): {cine.remark}" in str(report)


def test_slices_stay_together_where_a_frame_is_at_the_r_wave_to_rounding(tmp_path):
    jitter = (-2.0, 1.0, -19.0)
    paths = write_series(tmp_path / "a", DATA, AFFINE, change=times(lambda z, t: 40.0 * t + jitter[z], rr=None))
    cine = read_dicom_cine(paths, stack=True)
    assert_same(cine, DATA, AFFINE)
    assert cine.remark == ""
    jitter = (-18.0, -21.0, -24.0)
    paths = write_series(tmp_path / "b", DATA, AFFINE, change=times(lambda z, t: 40.0 * t + jitter[z]))
    assert_same(read_dicom_cine(paths, stack=True), np.roll(DATA, -1, axis=3), AFFINE)


@pytest.mark.parametrize(("time", "rr", "reason"), [
    (lambda z, t: -40.0 * t, 400.0, "trigger times from -360 ms and none above 0: no frame of a slice"),
    (lambda z, t: 200 - 40.0 * t, 400.0, "begin at -160 ms and do not run as the instance numbers do"),
    (lambda z, t: 40.0 * t - 80, None, "2 of 10 frames lie before the R wave .*NominalInterval"),
    (lambda z, t: 40.0 * t - 80, 900.0, "does not say that the frames fill the heart's cycle"),
])  # fmt: skip
def test_negative_trigger_times_that_may_reverse_the_cycle_are_refused(tmp_path, time, rr, reason):
    with pytest.raises(CineError, match=reason):
        read_dicom_cine(write_series(tmp_path, DATA, AFFINE, change=times(time, rr)), stack=True)


def cut(path, n_bytes):
    path.write_bytes(path.read_bytes()[:n_bytes])


@pytest.mark.parametrize("n_bytes", [100, 300, 470, 560])
def test_a_cut_header_is_to_blame_and_not_its_neighbour(tmp_path, n_bytes):
    """Cut before the file says what it is, which study it is of, and within the UID of its study or series."""
    paths = write_series(tmp_path / "src/one", DATA, AFFINE)
    write_series(tmp_path / "src/one", DATA[:, :, :1], AFFINE, description="4CH", number=2)
    write_series(tmp_path / "src/two", DATA, AFFINE, study="1.9", patient="Q")
    cut(paths[5], n_bytes)
    report = run(tmp_path / "src", tmp_path / "store")
    header, view = report.failures
    name = f"one/{paths[5].name}"
    assert header.study.startswith("P-1_") and (header.view, header.file) == (None, name)
    assert (view.study, view.view, view.file) == (header.study, "sax", name)
    assert view.reason.startswith("its header cannot be read, and without it sax is incomplete: frames are missing: ")
    store = CineStore(tmp_path / "store")
    assert [store.views(study) for study in store.ids] == [("lax_4c",), ("sax",)]
    assert not any(description == "" for description, *_ in report.series)


def test_broken_headers_are_a_line_a_study_or_folder_and_all_in_the_file(tmp_path):
    paths = write_series(tmp_path / "src/one", DATA, AFFINE)
    write_series(tmp_path / "src/two", DATA[:, :, :1], AFFINE, study="1.9", patient="Q", description="4CH")
    cut_files = paths[:11]  # of the last frame that is cut one slice is whole: the view is incomplete
    for n, path in enumerate(cut_files):
        cut(path, 100 if n < 4 else 300)
    for n, path in enumerate(paths[12:15]):
        (tmp_path / "src/lost").mkdir(exist_ok=True)
        (tmp_path / f"src/lost/{n}.dcm").write_bytes(path.read_bytes()[:300])
    report = run(tmp_path / "src", tmp_path / "store")
    failed = [line for line in str(report).splitlines() if line.startswith("failed: ")]
    assert len(failed) == 3 and len(report.failures) == 15
    first, (study,) = min(path.name for path in cut_files), {failure.study for failure in report.failures} - {""}
    assert f"failed: one/{first} and 10 more files of study {study}: 7 truncated: the file ends in its header (views " \
           "may lack it); 4 not DICOM: no DICM at byte 128 (views may lack it) (all in failures.jsonl)" in failed
    assert "failed: lost/0.dcm and 2 more files of folder lost: truncated: the file ends in its header (all in " \
           "failures.jsonl)" in failed
    assert failed[-1].startswith(f"failed: one/{first}: its header cannot be read, nor those of 10 files beside it, ")
    lines = (tmp_path / "store/failures.jsonl").read_text().splitlines()
    listed = {json.loads(line)["file"] for line in lines}
    assert {f"one/{path.name}" for path in cut_files} | {f"lost/{n}.dcm" for n in range(3)} <= listed


def test_a_cut_file_that_names_its_series_fails_its_view_by_name(tmp_path):
    """Also where what is left would pass for a cine: here the last frame of a single slice."""
    paths = write_series(tmp_path / "src", DATA[:, :, :1], AFFINE, description="4CH")
    cut(paths[-1], 800)
    report = run(tmp_path / "src", tmp_path / "store")
    (failure,) = report.failures
    assert (failure.view, failure.file) == ("lax_4c", paths[-1].name) and report.exit_code == 3
