"""Embeddings of cohorts that were never scanned, written by the writer of `embed`."""

from pathlib import Path

import numpy as np

from cinema_fast.cohort import embed
from cinema_fast.cohort.embedding import Embedding

# code that kills `embed` as it names the file NAME, after parts of five studies
KILL = """
import os, signal
import cinema_fast.cohort.embed as e
e.STUDIES_PER_PART = 5
replace = os.replace
def watched(source, target):
    if str(target).endswith({name!r}):
        os.kill(os.getpid(), signal.SIGKILL)
    return replace(source, target)
os.replace = watched
"""
METADATA = {"preset": "cinema-tiny", "step": "7", "skipped": "{}"}


def write_embeddings(path: Path, vectors: np.ndarray, studies: list[str] | None = None) -> list[str]:
    """Vectors (n, D) under the names `studies`, by default s000, s001, ...; returns the names."""
    studies = studies or [f"s{i:03d}" for i in range(len(vectors))]
    rows = [Embedding(study, {"sax": vector}, 4) for study, vector in zip(studies, vectors)]
    embed._write_part(path, embed.study_columns(rows), vectors.shape[1], METADATA)
    return studies


def planted(sizes=(40, 30, 20), width=16, apart=3.0, seed=0) -> tuple[np.ndarray, np.ndarray]:
    """Vectors (n, width) around random centres, shuffled; and the group (n,) of each."""
    rng = np.random.default_rng(seed)
    centres = apart * rng.standard_normal((len(sizes), width))
    group = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    return centres[group] + rng.standard_normal((len(group), width)), group
