"""DINO's weighted k-NN on frozen features (Caron et al., ICCV 2021, section 4.1; weights as Wu et al., CVPR 2018)."""

import numpy as np

NEIGHBOURS, TEMPERATURE = 20, 0.07
ROWS = 1024  # test features at a time, whose distances to all others are in memory


def weighted_knn(
    features: np.ndarray, targets: np.ndarray, test: np.ndarray, neighbours: int = NEIGHBOURS
) -> np.ndarray:
    """The mean (M, C) of the `targets` (N, C) of the nearest `features` (N, D) of each `test` feature (M, D).

    Nearest by cosine, weighted by exp(cosine / TEMPERATURE). Of one-hot targets these are the votes, of sum 1. All
    features are used where there are fewer than `neighbours`. float64.
    """
    features, near = _unit(features), min(neighbours, len(features))
    found = []
    for start in range(0, len(test), ROWS):
        cosine = _unit(test[start : start + ROWS]) @ features.T
        nearest = np.argpartition(-cosine, near - 1, axis=1)[:, :near]
        weight = np.exp((np.take_along_axis(cosine, nearest, 1) - 1) / TEMPERATURE)
        found.append((weight[..., None] * targets[nearest]).sum(1) / weight.sum(1, keepdims=True))
    return np.concatenate(found)


def _unit(vectors: np.ndarray) -> np.ndarray:
    vectors = np.asarray(vectors, np.float64)
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(length > 0, length, 1)
