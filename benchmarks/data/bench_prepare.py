"""Studies made into a store by `prepare`, from NIfTI and from DICOM, with one worker and with two.

The same synthetic studies in both forms: a short-axis stack of 12 slices and three long axes, 25 frames of 192 x 192,
as four `.nii.gz` and as 375 files of one image each, uncompressed. `studies/s` is by the wall clock; `CPU s` is what
the process and its workers used, their start included, so that 1 / `CPU s` is what a core does. Files are in the
system's cache. Beside it what nibabel or pydicom takes to read the same pixels and do nothing with them: less than any
preparation can take.

    pytest benchmarks --benchmark-only -k bench_prepare
"""

import importlib.util
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
from workload import GateError

from cinema_fast.data.prepare.prepare import PrepareConfig, prepare
from cinema_fast.data.store.store import CineStore

FULL = {"n": 8, "n_frames": 25, "size": 192, "n_slices": 12, "in_plane_mm": 1.5}
TOY = {"n": 2, "n_frames": 3, "size": 48, "n_slices": 3, "in_plane_mm": 6.0}
DESCRIPTIONS = {"sax": "cine SAX", "lax_2c": "cine 2CH", "lax_3c": "cine 3CH", "lax_4c": "cine 4CH"}
FORMATS = ["nifti", *(["dicom"] if importlib.util.find_spec("pydicom") else [])]
READERS = {"nifti": "nibabel", "dicom": "pydicom"}


def cpu_seconds() -> float:
    """That this process has used, and those of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def write_dicom(nifti: Path, folder: Path, ids: list[str]) -> None:
    """The studies of a folder of NIfTI as DICOM, a file for each image; the NIfTI gets its slices in DICOM's order."""
    import nibabel
    from dicom_files import write_series

    for number, study in enumerate(ids):
        for view, description in DESCRIPTIONS.items():
            path = nifti / f"{study}_{view}.nii.gz"
            image = nibabel.load(path)
            if np.linalg.det(image.affine[:3, :3]) < 0:
                image = image.slicer[:, :, ::-1]
            pixels = np.asarray(image.dataobj)
            nibabel.save(nibabel.Nifti1Image(pixels, image.affine, image.header), path)
            write_series(folder / study / view, pixels.astype(np.uint16), image.affine, study=f"1.2.{number}",
                         patient=study, description=description, frame_ms=1e3 * float(image.header.get_zooms()[3]))


class Studies:
    """Synthetic studies in each format, and what is done with them."""

    def __init__(self, folder: Path, smoke: bool):
        from cinema_fast.phantom.cohort import write_cohort

        options = dict(TOY if smoke else FULL)
        self.folder, self.cpu = folder, 0.0
        self.ids = write_cohort(folder / "nifti", options.pop("n"), 0, **options)
        if "dicom" in FORMATS:
            write_dicom(folder / "nifti", folder / "dicom", self.ids)
        for source in FORMATS:
            self.prepare(source, 1)
        self._check()

    def store(self, source: str) -> Path:
        """Where `prepare` puts the studies of a format."""
        return self.folder / f"store of {source}"

    def prepare(self, source: str, workers: int) -> None:
        """All studies of a format into a store; GateError where one is missing. `cpu` counts what that used."""
        before = cpu_seconds()
        report = prepare(PrepareConfig(self.folder / source, self.store(source), workers=workers), progress=False)
        self.cpu += cpu_seconds() - before
        if (report.prepared, report.failures) != (len(self.ids), []):
            raise GateError(f"of {len(self.ids)} studies in {source} {report.prepared} were prepared: {report}")

    def read(self, source: str) -> None:
        """Every pixel of a format, by the library that everybody has."""
        before = cpu_seconds()
        if source == "nifti":
            import nibabel

            for path in sorted((self.folder / source).glob("*.nii.gz")):
                np.asarray(nibabel.load(path).dataobj)
        else:
            import pydicom

            for path in sorted((self.folder / source).rglob("*.dcm")):
                _ = pydicom.dcmread(path).pixel_array
        self.cpu += cpu_seconds() - before

    def begin(self, source: str) -> None:
        """Before each round: no store."""
        shutil.rmtree(self.store(source), ignore_errors=True)

    def _check(self) -> None:
        """GateError unless the stores of all formats hold the same studies, but for digits that DICOM rounds."""
        first, *others = [CineStore(self.store(source)) for source in FORMATS]
        for other in others:
            for study, twin in zip(first.ids, other.ids, strict=True):
                for view in first.views(study):
                    frames = [s.read_frame(i, view, 1).astype(int) for s, i in ((first, study), (other, twin))]
                    if np.abs(frames[0] - frames[1]).max() > 1:
                        raise GateError(f"{study}, {view}: the frames of {other.path} are not those of {first.path}")


@pytest.fixture(scope="module")
def studies(request, tmp_path_factory):
    """The studies, of toy size with --smoke."""
    return Studies(tmp_path_factory.mktemp("prepare"), request.config.getoption("--smoke"))


@pytest.mark.parametrize("way", ["read alone", "1 worker", "2 workers"])
@pytest.mark.parametrize("source", FORMATS)
def test_prepare(benchmark, summary, studies, source, way, request):
    rounds, n = 1 if request.config.getoption("--smoke") else 3, len(studies.ids)
    alone = way == "read alone"
    benchmark.group = f"prepare-{source}"
    work, args = (studies.read, (source,)) if alone else (studies.prepare, (source, int(way[0])))
    studies.cpu = 0.0
    benchmark.pedantic(work, args=args, setup=lambda: studies.begin(source), rounds=rounds)
    if benchmark.stats is None:  # --benchmark-disable
        return
    rate, cpu = n / benchmark.stats.stats.median, studies.cpu / (rounds * n)
    benchmark.extra_info |= {"studies/s": rate, "CPU s a study": cpu}
    name = f"{READERS[source]}, {way}" if alone else way
    summary.append(f"{benchmark.group} {name}: {rate:.2f} studies/s, {cpu:.2f} CPU s a study: {1 / cpu:.2f} studies/s "
                   f"and core")  # fmt: skip
