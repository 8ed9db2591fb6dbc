"""`cinema-fast embed`: the vectors of a whole store as one Parquet file; a killed run continues where it stopped.

Parts of STUDIES_PER_PART studies are written to OUT.parts/, each whole or not at all, then joined to OUT. The parts are
removed when no study is missing. No batch crosses the end of a part, so a run that was killed and continued by the same
command writes the same file as an uninterrupted run.
"""

import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ..common.atomic import whole_file
from ..common.checks import check_at_least
from ..common.naming import count_studies, printable
from ..common.output import UNFINISHED, parts_folder

STUDIES_PER_PART = 128
_SKIPPED = "skipped"  # metadata of a part or of the whole: {study: why it has no vector} as JSON


@dataclass(frozen=True)
class EmbedConfig:
    """One vector per study of a store, by the encoder of a pre-training run, as a Parquet file.

    Columns: study, the name as it is printed (bytes that are not UTF-8 as \\udcXX); embedding, float32 of the encoder's
    width; views, those that were encoded; n_clips, the number of clips (HeartMAE) or time points (CineMA) averaged.
    """

    # run folder of `cinema-fast pretrain`; its newest intact checkpoint is used
    run: Annotated[Path, tyro.conf.arg(metavar="RUN")]
    # cine store made by `cinema-fast prepare`: the one trained on or another
    store: Annotated[Path, tyro.conf.arg(metavar="STORE")]
    # Parquet file to write; its name ends in .parquet
    out: Annotated[Path, tyro.conf.arg(metavar="OUT")]
    # CSV with a column study: also draw a 2-D map of the embeddings, as a .png beside OUT, coloured by --colour
    labels: Path | None = None
    # column of --labels, of numbers, that colours the picture
    colour: str = "ef"
    # frames (CineMA) or clips (HeartMAE) per forward pass
    batch_size: int = 32
    # device to run on; auto: the GPU if there is one
    device: Literal["auto", "cpu", "cuda"] = "auto"
    # threads that read the store
    workers: int = 2
    # try again the studies that could not be read the last time. A killed command does not need it: the same command
    # continues
    resume: bool = False

    def __post_init__(self):
        if self.out.suffix != ".parquet":
            raise ValueError(f"{self.out}: OUT is a Parquet file, name it {self.out.with_suffix('.parquet')}")
        check_at_least(self, 1, "batch_size", "workers")


@dataclass
class EmbedReport:
    """The content of OUT: number of studies, {study: why it has no vector}, and the picture, where one was drawn."""

    out: Annotated[Path, tyro.conf.arg(metavar="OUT")]
    studies: int
    skipped: dict[str, str] = field(default_factory=dict)
    picture: Path | None = None

    @property
    def exit_code(self) -> int:
        """0: every study has a vector; 1: some have none; 3: none has one, and there is no OUT."""
        if not self.studies:
            return 3
        return 1 if self.skipped else 0

    def __str__(self) -> str:
        lines = [f"{count_studies(self.studies)} embedded, {len(self.skipped)} skipped"]
        lines += [f"skipped: study {study}: {why}" for study, why in self.skipped.items()]
        written = [self.out] * bool(self.studies) + [self.picture] * bool(self.picture)
        return "\n".join(lines + [f"written: {path}" for path in written])


def embed(config: EmbedConfig) -> EmbedReport:
    """Embed every study of a store; see EmbedConfig, and `embedding.py` for what a study's vector is.

    OUT's metadata: preset, checkpoint (name, and SHA-256 of its manifest), step, store (SHA-256 of its contents), and
    the other options that the bits depend on: batch_size, device, precision.

    Raises:
        ValueError: no pyarrow; no run, store or checkpoint; OUT is there already or was made with other options;
            labels that do not fit.
        OutputError: OUT cannot be written; complete parts stay, and the same command continues from them.
    """
    _require_pyarrow()
    from ..common.parsed_file import read_json
    from ..common.progress import progress_bar
    from ..common.tables import check_matches, read_table
    from ..common.views import CLIP
    from ..data.store.clips import ClipStore
    from ..data.store.orientation import check_orientation
    from ..data.store.store import CineStore
    from ..models.cinema import CineMA
    from ..models.config import config_from_dict
    from ..models.weights import load_cinema_weights
    from ..train.checkpoint import newest_checkpoint
    from ..train.run_info import read_run_info
    from ..train.setup import pick_device, pick_precision, store_fingerprint
    from .embedding import embed_studies
    from .embedding_figure import read_labels

    info = read_run_info(config.run)
    if info is None:
        raise ValueError(f"{config.run} holds no run (no config.yaml there); make one with `cinema-fast pretrain`")
    if info.labels:
        raise ValueError(f"{config.run} is a run of finetune, and embed needs one of pretrain; for fine-tuned models "
                         "use `cinema-fast predict` and `cinema-fast evaluate`")
    checkpoints = config.run / "checkpoints"
    checkpoint = newest_checkpoint(checkpoints, lambda note: print(note, file=sys.stderr))
    if checkpoint is None:
        raise ValueError(f"{config.run} has no checkpoint yet")
    model_config = config_from_dict(info.model)
    cines = CineStore(config.store)
    check_orientation(cines, config.run, info.store.orientation)
    clips = CLIP in model_config.views
    store = ClipStore(cines, info.options["views"], min_frames=info.min_frames) if clips else cines
    for remark in store.remarks() if clips else ():
        print(remark, file=sys.stderr)
    if config.labels:
        names = [printable(study) for study in store.ids]
        read_labels(config.labels, config.colour, names)  # so that a table that does not fit is refused before the work
        check_matches(config.labels, read_table(config.labels).rows, names, config.store)
    device = pick_device(config.device)
    precision = pick_precision(info.options["precision"], device)
    name = f"step-{checkpoint.step:08d}"
    metadata = {
        "preset": info.options["preset"],
        "checkpoint": f"{name} {read_json(checkpoints / f'{name}.json')['sha256']}",
        "step": str(checkpoint.step),
        "store": store_fingerprint(cines),
        "batch_size": str(config.batch_size),
        "device": device.type,
        "precision": str(precision)[6:],
    }
    starts = range(0, len(store.ids), STUDIES_PER_PART)
    folder = config.out.with_name(config.out.name + ".parts")
    parts = [folder / f"part-{start // STUDIES_PER_PART:06d}.parquet" for start in starts]
    if finished := _begin(config, folder, metadata):
        return _drawn(config, finished)

    with parts_folder(folder):
        model = CineMA(model_config).to(device).eval()
        load_cinema_weights(model, checkpoint.weights)
        with progress_bar("embedding studies", len(store.ids)) as advance:
            for start, part in zip(starts, parts):
                studies = store.ids[start : start + STUDIES_PER_PART]
                if _read_skipped(part, metadata) == {}:
                    advance(len(studies))
                    continue
                vectors, skipped = embed_studies(
                    model,
                    store,
                    studies,
                    batch_size=config.batch_size,
                    device=device,
                    precision=precision,
                    workers=config.workers,
                    advance=advance,
                )
                _write_part(part, vectors, model_config.enc_embed_dim, metadata | {_SKIPPED: json.dumps(skipped)})
        report = _drawn(config, _join(config.out, parts, metadata))
    if not report.skipped:
        shutil.rmtree(folder)
    return report


def _drawn(config: EmbedConfig, report: EmbedReport) -> EmbedReport:
    """Draw the embeddings in OUT, where --labels colours them."""
    if config.labels and report.studies:
        import numpy as np

        from ..common.parquet import read_parquet
        from .embedding_figure import draw_embeddings, read_labels

        table = read_parquet(config.out, ["study", "embedding"])
        vectors = np.stack(table["embedding"].to_numpy())
        values = read_labels(config.labels, config.colour, table["study"].to_pylist())
        report.picture = config.out.with_suffix(".png")
        with whole_file(report.picture) as file:
            draw_embeddings(file, {count_studies(report.studies): vectors}, values, config.colour)
    return report


def _require_pyarrow() -> None:
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise ValueError(f"embed writes Parquet by pyarrow: pip install 'cinema-fast[embed]' ({error})") from None


def _begin(config: EmbedConfig, folder: Path, metadata: dict[str, str]) -> EmbedReport | None:
    """Examine what exists of OUT; returns the report where nothing is left to do. Raises ValueError as `embed`."""
    from ..common.output import check_outside_store

    out = config.out
    if out.is_dir():
        raise ValueError(f"{out} is a folder; expected a file to write")
    check_outside_store(out)
    made = [out, folder]
    picture = out.with_suffix(".png")
    if config.labels and picture.exists() and not config.resume:  # a killed run had not drawn it yet
        raise ValueError(f"{picture} exists: choose another OUT, or give --resume to draw it again")
    killed = (folder / UNFINISHED).exists()
    if not (config.resume or killed) and (there := next((path for path in made if path.exists()), None)):
        raise ValueError(f"{there} exists: choose another file, or give --resume to try again the studies that could "
                         "not be read")
    if out.exists() and not folder.exists():
        if _read_skipped(out, metadata) is None:
            raise ValueError(f"{out} is not a Parquet file; choose another")
        return EmbedReport(out, _read_metadata(out).num_rows)
    return None


def _read_skipped(path: Path, metadata: dict[str, str]) -> dict[str, str] | None:
    """The skipped studies of a part or of the whole file, and why; None where the file is missing or damaged.

    Raises ValueError where it was written with other `metadata`.
    """
    import pyarrow

    try:
        found = {name.decode(): value.decode() for name, value in (_read_metadata(path).metadata or {}).items()}
    except (FileNotFoundError, pyarrow.ArrowInvalid):
        return None
    differs = [f"{name}: was {found.get(name)}, now {now}" for name, now in metadata.items() if found.get(name) != now]
    if differs:
        raise ValueError(
            f"{path} was made with other options:\n  " + "\n  ".join(differs)
            + "\ngive the old values, or choose another file"
        )
    return json.loads(found[_SKIPPED])


def _write_part(path: Path, vectors: list, width: int, metadata: dict[str, str]) -> None:
    import numpy as np
    import pyarrow as pa

    flat = np.concatenate([np.zeros(0, np.float32), *(row.vector for row in vectors)])
    columns = {
        "study": pa.array([printable(row.study) for row in vectors], pa.string()),
        "embedding": pa.FixedSizeListArray.from_arrays(pa.array(flat), width),
        "views": pa.array([row.views for row in vectors], pa.list_(pa.string())),
        "n_clips": pa.array([row.n_clips for row in vectors], pa.int32()),
    }
    with _parquet_writer(path, pa.table(columns).schema.with_metadata(metadata)) as writer:
        writer.write_table(pa.table(columns).replace_schema_metadata(metadata))


def _join(out: Path, parts: list[Path], metadata: dict[str, str]) -> EmbedReport:
    """Join all parts to one file; no file is written where they hold no study."""
    from ..common.parquet import read_parquet

    skipped = {study: why for part in parts for study, why in _read_skipped(part, metadata).items()}
    metadata = metadata | {_SKIPPED: json.dumps(skipped)}
    report = EmbedReport(out, sum(_read_metadata(part).num_rows for part in parts), skipped)
    if report.studies:
        schema = _read_metadata(parts[0]).schema.to_arrow_schema()
        with _parquet_writer(out, schema.with_metadata(metadata)) as writer:
            for part in parts:
                writer.write_table(read_parquet(part).replace_schema_metadata(metadata))
    return report


def _read_metadata(path: Path):
    """The pyarrow.parquet.FileMetaData of a file, opened here: pyarrow takes no path that is not UTF-8."""
    import pyarrow.parquet as pq

    with path.open("rb") as file:
        return pq.read_metadata(file)


@contextmanager
def _parquet_writer(path: Path, schema) -> Iterator:
    """A Parquet writer whose file gets its name when it is complete and on disk."""
    import pyarrow.parquet as pq

    with whole_file(path, durable=True) as name, name.open("wb") as file, pq.ParquetWriter(file, schema) as writer:
        yield writer
