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
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from ..common.atomic import whole_file
from ..common.checks import check_at_least
from ..common.naming import count_studies, printable
from ..common.output import UNFINISHED, parts_folder

if TYPE_CHECKING:
    from ..data.store.store import CineStore
    from .embedding import Embedding

STUDIES_PER_PART = 128
_SKIPPED = "skipped"  # metadata of a part or of the whole: {study: why it has no vector} as JSON
_LATER = {"per": "study"}  # metadata that files of earlier versions lack


@dataclass(frozen=True)
class EmbedConfig:
    """One vector per study of a store, or per view, by the encoder of a pre-training run, as a Parquet file.

    Columns: study, the name as it is printed (bytes that are not UTF-8 as \\udcXX); embedding, float32 of the encoder's
    width; views, those that were encoded; n_images, the number of time points (CineMA), clips (HeartMAE) or images
    (DINO) averaged. With --per view instead: study; view; sequence (cine, lge, t1map, ...), null where the view's name
    does not say it or its channels have several; embedding.
    """

    # run folder of `cinema-fast pretrain`; its newest intact checkpoint is used
    run: Annotated[Path, tyro.conf.arg(metavar="RUN")]
    # cine store made by `cinema-fast prepare`: the one trained on or another
    store: Annotated[Path, tyro.conf.arg(metavar="STORE")]
    # Parquet file to write; its name ends in .parquet
    out: Annotated[Path, tyro.conf.arg(metavar="OUT")]
    # what has a vector: each study (the mean of its views), or each view of each study
    per: Literal["study", "view"] = "study"
    # of presets cmrfm-*: the teacher's class token, the mean of its patch tokens, or both one after the other
    tokens: Literal["class", "patches", "both"] = "class"
    # CSV with a column study: also draw a 2-D map of the embeddings, as a .png beside OUT, coloured by --colour
    labels: Path | None = None
    # column of --labels, of numbers, that colours the picture
    colour: str = "ef"
    # frames (CineMA), clips (HeartMAE) or images (DINO) per forward pass
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
        if self.labels and self.per == "view":
            raise ValueError("--labels has no effect with --per view: the map shows studies")


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
    """Embed every study of a store; see EmbedConfig, and `encoders.py` for what a vector is.

    OUT's metadata: preset, checkpoint (name, and SHA-256 of its manifest), step, store (SHA-256 of its contents), per,
    and the other options that the bits depend on: batch_size, device, precision, of DINO also tokens.

    Raises:
        ValueError: no pyarrow; no run, store or checkpoint; a store without the run's views; OUT is there already or
            was made with other options; labels that do not fit; tokens that have no effect.
        OutputError: OUT cannot be written; complete parts stay, and the same command continues from them.
    """
    _require_pyarrow()
    from ..common.parsed_file import read_json
    from ..common.progress import progress_bar
    from ..common.tables import check_matches, read_table
    from ..data.store.orientation import check_orientation
    from ..data.store.store import CineStore
    from ..train.checkpoint import newest_checkpoint
    from ..train.run_info import read_run_info
    from ..train.setup import largest_frames, pick_device, pick_precision, store_fingerprint
    from .embedding import embed_studies
    from .embedding_figure import read_labels
    from .encoders import encoder_of

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
    cines = CineStore(config.store)
    check_orientation(cines, config.run, info.store.orientation)
    encoder = encoder_of(info, cines, config.tokens)
    for remark in encoder.remarks():
        print(remark, file=sys.stderr)
    if not any(encoder.views(study) for study in cines.ids):
        wanted, held = (", ".join(views) for views in (encoder.wanted, largest_frames(cines)))
        raise ValueError(f"{config.store} has none of the views of {config.run} ({wanted}), only {held}: embed "
                         "another store, or by another run")
    if config.labels:
        names = [printable(study) for study in cines.ids]
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
        "per": config.per,
        **encoder.metadata,
    }
    starts = range(0, len(cines.ids), STUDIES_PER_PART)
    folder = config.out.with_name(config.out.name + ".parts")
    parts = [folder / f"part-{start // STUDIES_PER_PART:06d}.parquet" for start in starts]
    if finished := _begin(config, folder, metadata):
        return _drawn(config, finished)

    with parts_folder(folder):
        model = encoder.build(checkpoint.weights).to(device).eval()
        with progress_bar("embedding studies", len(cines.ids)) as advance:
            for start, part in zip(starts, parts):
                studies = cines.ids[start : start + STUDIES_PER_PART]
                if _read_skipped(part, metadata) == {}:
                    advance(len(studies))
                    continue
                vectors, skipped = embed_studies(
                    encoder,
                    model,
                    studies,
                    batch_size=config.batch_size,
                    device=device,
                    precision=precision,
                    workers=config.workers,
                    advance=advance,
                )
                columns = study_columns(vectors) if config.per == "study" else view_columns(vectors, cines)
                _write_part(part, columns, encoder.width, metadata | {_SKIPPED: json.dumps(skipped)})
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
        if out.exists():
            _read_skipped(out, metadata)  # --resume is of no use for a file that was made with other options
        raise ValueError(f"{there} exists: choose another file, or give --resume to try again the studies that could "
                         "not be read")
    if out.exists() and not folder.exists():
        if _read_skipped(out, metadata) is None:
            raise ValueError(f"{out} is not a Parquet file; choose another")
        return EmbedReport(out, _n_studies(out))
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
    then = _LATER | found
    differs = [f"{name}: was {then.get(name)}, now {now}" for name, now in metadata.items() if then.get(name) != now]
    if differs:
        raise ValueError(
            f"{path} was made with other options:\n  " + "\n  ".join(differs)
            + "\ngive the old values, or choose another file"
        )
    return json.loads(found[_SKIPPED])


def study_columns(rows: "list[Embedding]") -> dict[str, list]:
    """{column: values} of a file with a vector per study."""
    return {
        "study": [printable(row.study) for row in rows],
        "embedding": [row.vector for row in rows],
        "views": [list(row.by_view) for row in rows],
        "n_images": [row.n_images for row in rows],
    }


def view_columns(rows: "list[Embedding]", store: "CineStore") -> dict[str, list]:
    """{column: values} of a file with a vector per view."""
    shown = [(row.study, view) for row in rows for view in row.by_view]
    sequences = [set(store.info(study, view).sequences) for study, view in shown]
    return {
        "study": [printable(study) for study, _ in shown],
        "view": [view for _, view in shown],
        "sequence": [of.pop() if len(of) == 1 else None for of in sequences],
        "embedding": [vector for row in rows for vector in row.by_view.values()],
    }


def _write_part(path: Path, columns: dict[str, list], width: int, metadata: dict[str, str]) -> None:
    import numpy as np
    import pyarrow as pa

    text, of = pa.string(), dict(columns)
    flat = np.concatenate([np.zeros(0), *of["embedding"]]).astype(np.float32)
    of["embedding"] = pa.FixedSizeListArray.from_arrays(pa.array(flat), width)
    types = {"study": text, "view": text, "sequence": text, "views": pa.list_(text), "n_images": pa.int32()}
    table = pa.table({name: pa.array(of[name], kind) if (kind := types.get(name)) else of[name] for name in of})
    table = table.replace_schema_metadata(metadata)
    with _parquet_writer(path, table.schema) as writer:
        writer.write_table(table)


def _join(out: Path, parts: list[Path], metadata: dict[str, str]) -> EmbedReport:
    """Join all parts to one file; no file is written where they hold no study."""
    from ..common.parquet import read_parquet

    skipped = {study: why for part in parts for study, why in _read_skipped(part, metadata).items()}
    metadata = metadata | {_SKIPPED: json.dumps(skipped)}
    report = EmbedReport(out, sum(map(_n_studies, parts)), skipped)
    if report.studies:
        schema = _read_metadata(parts[0]).schema.to_arrow_schema()
        with _parquet_writer(out, schema.with_metadata(metadata)) as writer:
            for part in parts:
                writer.write_table(read_parquet(part).replace_schema_metadata(metadata))
    return report


def _n_studies(path: Path) -> int:
    from ..common.parquet import read_parquet

    return len(read_parquet(path, ["study"])["study"].unique())


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
