"""The `cinema-fast` command line: its commands and their exit status.

0: done. 1: an error, in one line on stderr (verify: altered files, one per line; pretrain and finetune also where the
last updates of a run were all skipped). 2: unknown or wrong options. 3 (prepare, embed, predict): no study could be
processed. 130 or 143: stopped by Ctrl-C or SIGTERM (pretrain and finetune have then saved a checkpoint).
"""

import difflib
import io
import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal

from .common.renamed import current_arguments

# {command: {option: hint}}, printed after the parser's message where it refuses a command line with the option
_OF_RUNS = {"--learning-rate": "the learning rate is --lr", "--epochs": "the length of a run is given by --steps"}
_HINTS = {
    "prepare": {
        "--check": "prepare --repair SRC STORE prepares damaged studies again from the sources; to check a store only: "
        "cinema-fast verify STORE"
    },
    "pretrain": _OF_RUNS,
    "finetune": _OF_RUNS,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command (by default that of sys.argv) and return its exit status."""
    import tyro

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # file names may hold bytes that it cannot print
            stream.reconfigure(errors="backslashreplace")
    commands = _commands()
    given = list(sys.argv[1:] if argv is None else argv)
    named = next(iter(given), "-")
    if not named.startswith("-") and named not in commands:  # the parser only gives hints about options
        near = difflib.get_close_matches(named, commands, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        print(f"cinema-fast: no command {named!r}{hint} (commands: {', '.join(commands)})", file=sys.stderr)
        return 2
    arguments, warnings = current_arguments(named, given)
    for warning in warnings:
        print(f"cinema-fast: {warning}", file=sys.stderr)
    try:
        return tyro.extras.subcommand_cli_from_dict(
            commands,
            prog="cinema-fast",
            description="Fast self-supervised pre-training and fine-tuning on cardiac MRI.",
            args=arguments,
            config=(tyro.conf.FlagCreatePairsOff,),
        )
    except SystemExit as end:  # raised by the parser; 0 after help
        if end.code:
            options = {argument.partition("=")[0] for argument in given}
            for option, hint in _HINTS.get(named, {}).items():
                if option in options:
                    print(f"cinema-fast: {hint}", file=sys.stderr)
        raise
    except BrokenPipeError:  # the reader of the output (head, less) has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError) as error:  # a user's error; anything else is a bug, with its traceback
        print(f"cinema-fast: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        if str(stop):  # says what is kept, and how to continue
            print(f"cinema-fast: {stop}", file=sys.stderr)
        return 130


def _print_options(config) -> int:
    import yaml

    print(yaml.safe_dump(config.to_dict(), sort_keys=False), end="")
    return 0


def _commands() -> dict[str, Callable[..., int]]:
    import tyro

    from .bench_data import BenchDataConfig
    from .cohort.cluster_config import ClusterConfig
    from .cohort.embed import EmbedConfig
    from .cohort.probe_embeddings import ProbeConfig
    from .common.sequences import SEQUENCES
    from .data.prepare.prepare_config import PrepareConfig
    from .demo import DemoConfig
    from .evaluation.evaluate_config import EvaluateConfig
    from .methods.pretrain_config import PretrainConfig
    from .phantom.layouts.registry import LAYOUTS
    from .phantom.scanner import SCANNERS
    from .prediction.predict_config import PredictConfig
    from .tasks.finetune_config import FinetuneConfig

    # without a name, so that a config's ValueError reaches `main`, which prints it in one line
    plain = tyro.conf.arg(name="")
    Out, Store = (Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar=name)] for name in ("OUT", "STORE"))
    Runs = Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN RUN ...")]

    def info() -> int:
        """Show versions, devices, installed extras, presets, and the backend of each operation."""
        from .info import describe

        print(describe())
        return 0

    def phantom(
        dst: Out, n: int = 8, seed: int = 0, workers: int = 1, n_frames: int = 30, n_slices: int = 12,
        in_plane_mm: float = 1.6, sequences: tuple[Literal[("all", *SEQUENCES)], ...] = ("cine",), atria: bool = False,
        rescan: bool = False, vendor: Literal[(*SCANNERS, "any")] | None = None,
        layout: Literal[tuple(LAYOUTS)] | None = None,
    ) -> int:
        """Write a cohort of synthetic hearts with known ground truth, as NIfTI.

        Args:
            dst: folder to write the cohort to.
            n: number of studies.
            seed: random seed.
            workers: number of processes that write studies.
            n_frames: frames over the cardiac cycle; fewer are written sooner.
            n_slices: short-axis slices, spread over the ventricles.
            in_plane_mm: pixel size of all views in mm; larger pixels are written sooner.
            sequences: cine, late enhancement (lge), T1 and T2 maps in ms (t1map, t2map), T2- and T1-weighted images
                (t2w, t1w); views of all but the cine begin with this name, as lge_sax.
            atria: label the atria too in cines (7 left, 8 right), as in the other sequences.
            rescan: scan every heart twice, the second time with other planes, breath-holds, vendor and noise.
            vendor: brightness, noise, contrast and sharpness as on scanners of a vendor, and its pixel size in
                multiples of --in-plane-mm; any: drawn for each study. If not given: one style for all, and a drawn one
                for second scans.
            layout: folders, file names, labels and tables of a public data set, to test programs that read it.
        """
        from .common.naming import count_studies
        from .phantom.cohort import write_cohort
        from .phantom.layouts.write_layout import write_layout

        shape = {"n_frames": n_frames, "n_slices": n_slices, "in_plane_mm": in_plane_mm}
        if layout:
            for name, given in (("sequences", sequences != ("cine",)), ("atria", atria), ("rescan", rescan),
                                ("vendor", vendor)):
                if given:
                    raise ValueError(f"--{name} cannot be chosen with --layout: the data set decides")
            parts = Counter(case.part for case in write_layout(dst, layout, n, seed, workers=workers, progress=True,
                                                               **shape))
            print(f"{dst}: {count_studies(n)} in the layout of {layout}, "
                  f"{', '.join(f'{count} in {part}' for part, count in parts.items())}; true parameters and volumes in "
                  f"truth.csv")
            return 0
        shape |= {"sequences": SEQUENCES if "all" in sequences else sequences, "atria": atria, "vendor": vendor}
        written = write_cohort(dst, n, seed, rescan=rescan, workers=workers, progress=True, **shape)
        split = ", a split that keeps both scans of a heart together in split.csv" * rescan
        print(f"{dst}: {count_studies(len(written))}, {written[0]} to {written[-1]}; label maps in labels/, true "
              f"parameters and volumes in truth.json and truth.csv, landmarks in landmarks.csv and "
              f"rv_insertions.csv{split}")
        return 0

    def prepare(config: Annotated[PrepareConfig, plain, tyro.conf.PositionalRequiredArgs]) -> int:
        """Turn a folder of NIfTI or DICOM cines into a cine store."""
        from .data.prepare.prepare import prepare

        report = prepare(config)
        print(report)
        return report.exit_code

    def verify(store: Store, workers: int = 0) -> int:
        """Check every file of a cine store against its checksum, and list altered ones.

        Args:
            store: cine store made by `cinema-fast prepare`.
            workers: threads that read files; 0: one per core.
        """
        from .data.store.check import check_store

        report = check_store(store, workers=workers)
        print(report)
        return report.exit_code

    def inspect(store: Store, out: Path | None = None) -> int:
        """Summarise a cine store, in numbers and in pictures.

        Args:
            store: cine store made by `cinema-fast prepare`.
            out: folder for a contact sheet of some studies (PNG) and one of them moving (GIF).
        """
        from .data.store.inspect_store import inspect_store

        print(inspect_store(store, out))
        return 0

    def pretrain(config: Annotated[PretrainConfig, plain], print_config: bool = False) -> int:
        """Pre-train on a cine store: CineMA on frames of all views, HeartMAE on clips, DINO (cmrfm-*) on single images.

        Args:
            config: the run.
            print_config: print the options as YAML and exit.
        """
        if print_config:
            return _print_options(config)
        from .methods.pretrain import pretrain

        return pretrain(config).exit_code

    def finetune(config: Annotated[FinetuneConfig, plain], print_config: bool = False) -> int:
        """Fine-tune on labelled studies: segmentation, regression, classification, landmarks, or several at once.

        Args:
            config: the run.
            print_config: print the options as YAML and exit.
        """
        if print_config:
            return _print_options(config)
        from .tasks.finetune import finetune

        return finetune(config).exit_code

    def evaluate(config: Annotated[EvaluateConfig, plain, tyro.conf.PositionalRequiredArgs]) -> int:
        """Evaluate a fine-tuned model on labelled studies: scores with intervals, tables, a report with pictures."""
        from .evaluation.evaluate import evaluate_run
        from .evaluation.results import scores_in_words

        print(scores_in_words(evaluate_run(config)))
        print(f"report: {config.out / 'report' / 'index.html'}, numbers: {config.out / 'results.json'}")
        return 0

    def predict(config: Annotated[PredictConfig, plain, tyro.conf.PositionalRequiredArgs]) -> int:
        """Predict NIfTI or DICOM studies with a fine-tuned model: label maps, volumes, landmarks, values, pictures."""
        from .prediction.predict import predict

        report = predict(config)
        print(report)
        return report.exit_code

    def compare(runs: Runs, out: Path | None = None) -> int:
        """Compare runs side by side, or evaluations paired by study.

        Args:
            runs: two run folders or more (unfinished ones too), or evaluation folders, each compared with the first.
            out: folder for tables (comparison.md) and loss curves (comparison.png) or numbers (comparison.json).
        """
        from .evaluation.compare import compare

        print(compare(runs, out))
        return 0

    def embed(config: Annotated[EmbedConfig, plain, tyro.conf.PositionalRequiredArgs]) -> int:
        """Embed a store with the encoder of a pre-training run: one vector per study or view, as Parquet."""
        from .cohort.embed import embed

        report = embed(config)
        print(report)
        return report.exit_code

    def cluster(config: Annotated[ClusterConfig, plain]) -> int:
        """Cluster the embeddings of a cohort, measure how stable the clusters are, and describe them by a table."""
        from .cohort.cluster import cluster

        print(cluster(config))
        return 0

    def probe(config: Annotated[ProbeConfig, plain]) -> int:
        """Predict columns of a table from embeddings: linear probe, k-NN, and a baseline without embeddings."""
        from .cohort.probe_embeddings import probe

        print(probe(config))
        return 0

    def bench(config: Annotated[BenchDataConfig, plain, tyro.conf.PositionalRequiredArgs]) -> int:
        """Time each stage from a cine store to a training step, and name the bottleneck: bench data STORE."""
        from .bench_stages import time_stages

        print(time_stages(config))
        return 0

    def demo(config: Annotated[DemoConfig, plain]) -> int:
        """Run the whole pipeline in minutes on a CPU: synthetic hearts, a store, pre-training, pictures."""
        from .demo import demo

        return demo(config)

    return {
        "info": info, "phantom": phantom, "prepare": prepare, "verify": verify, "inspect": inspect,
        "pretrain": pretrain, "finetune": finetune, "evaluate": evaluate, "predict": predict, "compare": compare,
        "embed": embed, "cluster": cluster, "probe": probe, "bench": bench, "demo": demo,
    }  # fmt: skip
