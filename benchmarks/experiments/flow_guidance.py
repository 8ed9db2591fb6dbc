"""Does motion-guided masking help? HeartMAE on synthetic hearts: uniform masks against masks that mask, or keep, the
patches that move; the same data, steps and network, several seeds each.

    python benchmarks/experiments/flow_guidance.py --out DIR    (with the `test` extra; 12 to 30 minutes on two cores)

writes docs/experiments/flow_guidance.md and .png. Intermediate results are kept in DIR, so that the same command
continues a stopped run. Pre-training uses one cohort; everything is measured on another one:

- the heart's share among visible tokens, relative to uniform masks (from the labels, at the run's own draws);
- masked reconstruction error, on pixels of the heart and on all pixels, at the same uniform masks for every run;
- linear probes on frozen embeddings, cross-validated: ejection fraction (ridge), disease (logistic regression).
"""

import argparse
import json
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import checkout
import conditions
import numpy as np
import torch
from scipy import ndimage

from cinema_fast.cohort.embedding import embed_studies
from cinema_fast.cohort.embedding_figure import draw_embeddings
from cinema_fast.cohort.encoders import ClipEncoder
from cinema_fast.common.views import CLIP
from cinema_fast.data.formats.nifti import read_nifti
from cinema_fast.data.loading.augmentation import AugmentConfig
from cinema_fast.data.loading.loader import read_batch
from cinema_fast.data.loading.sampler import Sampler
from cinema_fast.data.prepare.prepare import PrepareConfig, prepare
from cinema_fast.data.store.clips import ClipStore, clip_frames
from cinema_fast.data.store.store import CineStore
from cinema_fast.kernels.patches import gather_patches
from cinema_fast.methods.guidance import Guidance
from cinema_fast.methods.mae_evaluation import fixed_batches, fixed_plan, images_of
from cinema_fast.methods.masking import draw_plan
from cinema_fast.methods.pretrain import pretrain
from cinema_fast.methods.pretrain_config import MaskConfig, PretrainConfig
from cinema_fast.models.cinema import CineMA
from cinema_fast.models.config import preset
from cinema_fast.models.weights import load_cinema_weights
from cinema_fast.phantom.cohort import write_cohort
from cinema_fast.train.checkpoint import newest_checkpoint

CPU = torch.device("cpu")
PRESET = "heartmae-tiny"
PIXEL_MM = 3.0  # 48 pixels: 144 mm, the heart and as much around it
MASK_RATIO = 0.75
ARMS = {
    "chance": MaskConfig(),
    "mask what moves": MaskConfig(guidance="motion", mode="mask"),
    "keep what moves": MaskConfig(guidance="motion", mode="keep"),
}
UNTRAINED = "no pre-training"
STILL = AugmentConfig(zoom_share=0.0)  # labels are not zoomed
EXPECTED = {"mask what moves": "at most 0.6", "keep what moves": "at least 1.5"}


@dataclass(frozen=True)
class Size:
    """Studies to pre-train on and to measure on, steps, seeds."""

    training: int = 192
    probing: int = 240
    steps: int = 2500
    batch: int = 16
    seeds: tuple[int, ...] = (0, 1, 2)


SMOKE = Size(training=6, probing=20, steps=4, batch=4, seeds=(0,))


def make_store(out: Path, name: str, n: int, seed: int) -> Path:
    """A cohort and its store with motion maps; kept once made."""
    cohort, store = out / f"{name}-cohort", out / f"{name}-store"
    if not (cohort / "truth.json").exists():
        write_cohort(cohort, n, seed, workers=2, in_plane_mm=PIXEL_MM, n_frames=16, n_slices=6)
    return prepare_store(cohort, store)


def prepare_store(cohort: Path, store: Path) -> Path:
    """A store with motion maps, its frames of the size of the network's clips; made, or brought up to date."""
    _, *plane = preset(PRESET).image_size[CLIP]
    report = prepare(
        PrepareConfig(
            src=cohort, dst=store, motion=True, sax_size=(*plane, 16), lax_size=tuple(plane),
            sax_spacing=(PIXEL_MM, PIXEL_MM, 10.0), lax_spacing=(PIXEL_MM, PIXEL_MM),
        ),
        progress=False,
    )  # fmt: skip
    if report.exit_code:
        raise SystemExit(str(report))
    return store


def train(job: tuple[Path, Path, str, int, Size]) -> Path:
    """One run of an arm and a seed; it continues where it was stopped."""
    out, store, arm, seed, size = job
    torch.set_num_threads(1)
    run = out / "runs" / f"{arm.replace(' ', '-')}-{seed}"
    if not (run / "report" / "loss.png").exists():
        pretrain(
            PretrainConfig(
                data=store, out=run, steps=size.steps, preset=PRESET, batch_size=size.batch, seed=seed, lr=2e-3,
                weight_decay=0.05, warmup=0.05, mask_ratio=MASK_RATIO, mask=ARMS[arm], precision="fp32", device="cpu",
                log_every=100, checkpoint_every=1000, resume=(run / "config.yaml").exists(),
            )
        )  # fmt: skip
    return run


def heart_labels(cohort: Path, store: CineStore, study: str, view: str) -> np.ndarray:
    """bool (T, X, Y[, Z]): where the heart's labels lie on the store's grid, by the nearest voxel."""
    volume = read_nifti(cohort / "labels" / f"{study}_{view}.nii.gz")
    labels = volume.values().reshape((*volume.data.shape, 1)[:4], order="F")  # (X, Y, Z, T)
    info = store.info(study, view)
    size = (*info.shape[1:], 1)[:3]
    voxel = np.linalg.inv(volume.affine) @ info.affine  # stored index -> index of the label file
    at = np.tensordot(voxel[:3, :3], np.indices(size), 1) + voxel[:3, 3].reshape(3, 1, 1, 1)
    at = np.rint(at)  # or a plane that lies a rounding error off its own would be outside
    found = [ndimage.map_coordinates(frame, at, order=0, cval=0) > 0 for frame in np.moveaxis(labels, -1, 0)]
    return np.stack(found) if len(info.shape) == 4 else np.stack(found)[..., 0]


class HeartClips:
    """Where the heart lies in clips of a store, cut as `ClipStore` cuts the images."""

    def __init__(self, cohort: Path, store: ClipStore, cines: CineStore):
        self.store = store
        shown = {(study, plane.view) for study in store.ids for plane in store.planes(study)}
        self.labels = {at: heart_labels(cohort, cines, *at) for at in shown}

    def clip(self, study: str, plane: int, phase: float, n: int) -> torch.Tensor:
        """float32 (n, X, Y): 1 on the heart."""
        view, at = self.store.planes(study)[plane]
        labels = self.labels[study, view]
        frames = labels[clip_frames(phase, n, len(labels))]
        return torch.from_numpy((frames if at is None else frames[..., at]).astype(np.float32))

    def batch(self, batch) -> torch.Tensor:
        """(B, 1, T, X, Y) of a batch of clips that are not zoomed."""
        draw, n = batch.draw, batch.frames[CLIP].shape[1]
        clips = [self.clip(*one, n) for one in zip(draw.ids, draw.plane, draw.phase)]
        return torch.stack(clips).unsqueeze(1)


def heart_share(hearts: HeartClips, arm: str, *, online: bool, batches: int, seed: int) -> float:
    """The heart's share of the visible tokens' pixels, relative to its share of all: 1 for masks by chance."""
    config, store = preset(PRESET), hearts.store
    planes = {study: len(store.planes(study)) for study in store.ids}
    sampler = Sampler(dict.fromkeys(store.ids, (CLIP,)), seed=seed, batch_size=20, planes=planes, augment=STILL)
    guidance = Guidance(ARMS[arm], config, steps=1, online=online, device=CPU)
    seen, everywhere = 0.0, 0.0
    every = torch.arange(config.n_tokens(CLIP)).expand(20, -1)
    for step in range(batches):
        batch = read_batch(store, sampler.draw(step), config.image_size, motion=not online)
        weights = guidance.weights(batch, images_of(batch), step) if ARMS[arm].guidance == "motion" else None
        plan = draw_plan(
            config, (CLIP,), batch.slot, mask_ratio=MASK_RATIO, seed=seed, step=step, weights=weights
        )[CLIP]
        share = gather_patches(hearts.batch(batch), every, config.token_size(CLIP)).flatten(2).mean(2)  # (B, N)
        seen += float(share.gather(1, plan.keep.long()).mean())
        everywhere += float(share.mean())
    return seen / everywhere


@torch.no_grad()
def reconstruction(model: CineMA, hearts: HeartClips) -> dict[str, float]:
    """Mean squared error of the masked pixels, on the heart's and on all, at the masks of every evaluation."""
    totals = torch.zeros(4, dtype=torch.float64)
    token = model.config.token_size(CLIP)
    for batch in fixed_batches(hearts.store, model.config, hearts.store.ids, batch_size=40):
        images, plan = images_of(batch), fixed_plan(model.config, batch, MASK_RATIO)
        pred = model(images, plan).pred[CLIP]
        true = gather_patches(images[CLIP], plan[CLIP].masked, token).flatten(2)
        heart = gather_patches(hearts.batch(batch), plan[CLIP].masked, token).flatten(2)
        error = (pred - true).double() ** 2
        totals += torch.stack([(error * heart).sum(), heart.double().sum(), error.sum(), torch.tensor(error.numel())])
    return {"mse_heart": float(totals[0] / totals[1]), "mse": float(totals[2] / totals[3])}


def probe(vectors: np.ndarray, ef: np.ndarray, disease: np.ndarray) -> dict[str, float]:
    """Linear probes, predictions of 5-fold cross-validation: EF by ridge, disease by logistic regression; strengths of
    the penalties chosen inside of each training part."""
    from sklearn.linear_model import LogisticRegression, RidgeCV
    from sklearn.metrics import balanced_accuracy_score, r2_score, roc_auc_score
    from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    ridge = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-2, 4, 13)))
    strengths = {"C": np.logspace(-4, 2, 7)}
    search = GridSearchCV(LogisticRegression(max_iter=2000), strengths, cv=3, scoring="neg_log_loss")
    logistic = make_pipeline(StandardScaler(), search)
    splits = list(folds.split(vectors, disease))
    predicted = cross_val_predict(ridge, vectors, ef, cv=splits)
    chances = cross_val_predict(logistic, vectors, disease, cv=splits, method="predict_proba")
    kinds = np.unique(disease)
    return {
        "ef_mae": float(np.abs(predicted - ef).mean()),
        "ef_r2": float(r2_score(ef, predicted)),
        "disease_accuracy": float(balanced_accuracy_score(disease, kinds[chances.argmax(1)])),
        "disease_auroc": float(roc_auc_score(disease, chances, multi_class="ovr", average="macro")),
    }


def measure(run: Path | None, hearts: HeartClips, truth: dict, seed: int) -> tuple[dict[str, float], np.ndarray]:
    """Figures and embeddings (n, D) of a run; of an untrained network where it is None."""
    torch.manual_seed(seed)
    model = CineMA(preset(PRESET)).eval()
    if run:
        load_cinema_weights(model, newest_checkpoint(run / "checkpoints", print).weights)
    rows, failures = embed_studies(
        ClipEncoder(model.config, hearts.store), model, hearts.store.ids,
        batch_size=64, device=CPU, precision=torch.float32, workers=2,
    )  # fmt: skip
    if failures:
        raise SystemExit(f"studies that cannot be read: {failures}")
    vectors = np.stack([row.vector for row in rows])
    ef, disease = (np.array([truth[study][key] for study in hearts.store.ids]) for key in ("ef", "disease"))
    return reconstruction(model, hearts) | probe(vectors, ef, disease), vectors


COLUMNS = {
    "mse_heart": ("masked MSE on the heart", ".5f"),
    "mse": ("masked MSE", ".5f"),
    "ef_mae": ("EF MAE [points]", ".2f"),
    "ef_r2": ("EF R2", ".3f"),
    "disease_accuracy": ("disease, balanced accuracy", ".3f"),
    "disease_auroc": ("disease, AUROC", ".3f"),
}


def spread(values: list[float], form: str) -> str:
    sd = f" ± {np.std(values, ddof=1):{form}}" if len(values) > 1 else ""
    return f"{np.mean(values):{form}}{sd}"


def document(size: Size, results: dict, shares: dict, seconds: float, kinds: int) -> str:
    """The experiment as Markdown; every figure from `results` and `shares`."""
    head = ["arm", *(title for title, _ in COLUMNS.values())]
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    for arm, by_seed in results.items():
        cells = [spread([values[key] for values in by_seed], form) for key, (_, form) in COLUMNS.items()]
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    share_lines = ["| arm | stored maps | online | expected |", "| --- | --- | --- | --- |"]
    for arm, row in shares.items():
        share_lines.append(
            f"| {arm} | {spread(row['stored'], '.3f')} | {spread(row['online'], '.3f')} | {EXPECTED.get(arm, '1')} |"
        )
    chance = results["chance"]
    differences = []
    for arm in list(ARMS)[1:]:
        parts = []
        for key, (title, form) in COLUMNS.items():
            paired = [a[key] - b[key] for a, b in zip(results[arm], chance)]
            parts.append(f"{title} {'+' if np.mean(paired) >= 0 else ''}{spread(paired, form)}")
        differences.append(f"- {arm}: " + "; ".join(parts))
    guided = ARMS["keep what moves"]
    machine = f"{conditions.cpu_model()}, PyTorch {torch.__version__}; {conditions.now()[:10]}, "
    machine += conditions.commit()
    return "\n".join([
        "# Motion-guided masks compared with uniform masks",
        "",
        f"`python benchmarks/experiments/flow_guidance.py --out DIR`, {seconds / 60:.0f} minutes; {machine}",
        "",
        "Three ways to mask: *chance* draws masks uniformly, *mask what moves* masks the patches that move "
        "(`--mask.mode mask`), *keep what moves* keeps them visible (`--mask.mode keep`).",
        "",
        f"HeartMAE (`{PRESET}`) on clips of every slice and long-axis view, {size.training} synthetic hearts, "
        f"{size.steps} steps of {size.batch} clips, {MASK_RATIO:.0%} of the tokens masked, strength "
        f"{guided.strength:g}, temperature {guided.temperature:g}, motion from the store's maps; "
        f"{len(size.seeds)} seeds each, all other options equal. Measured on "
        f"{size.probing} other hearts of {kinds} disease classes. ± is the standard deviation over seeds; the folds of "
        "the probes are the same for all.",
        "",
        "## The heart's share of the visible tokens, relative to chance",
        "",
        *share_lines,
        "",
        "## Reconstruction and linear probes",
        "",
        *lines,
        "",
        "Reconstruction is evaluated with uniform masks for every arm, so that all errors are of the same patches; "
        "the guided arms were trained with other masks than these.",
        f"Always predicting the mean has an EF R2 of 0; random guessing has a balanced accuracy of {1 / kinds:.2f} and "
        "an AUROC of 0.5.",
        "",
        "Difference from uniform masks, paired by seed:",
        "",
        *differences,
        "",
        "## Embeddings in two dimensions",
        "",
        "Principal components of the first seed's embeddings, coloured by ejection fraction:",
        "",
        "![embeddings](flow_guidance.png)",
        "",
    ])  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for cohorts, stores and runs")
    parser.add_argument("--document", type=Path, default=checkout.ROOT / "docs/experiments/flow_guidance.md")
    parser.add_argument("--smoke", action="store_true", help="toy size: whether it runs, not what it says")
    options = parser.parse_args()
    size = SMOKE if options.smoke else Size()
    out = options.out
    out.mkdir(parents=True, exist_ok=True)
    size_file = out / "size.json"
    if size_file.exists() and json.loads(size_file.read_text()) != json.loads(json.dumps(asdict(size))):
        parser.error(f"--out {out} holds an experiment of another size: {size_file.read_text()}; choose another folder")
    size_file.write_text(json.dumps(asdict(size)))
    began = time.perf_counter()
    spent = out / "seconds.json"  # of runs that were stopped
    before = json.loads(spent.read_text()) if spent.exists() else 0.0

    training = make_store(out, "training", size.training, seed=1)
    make_store(out, "probing", size.probing, seed=2)
    jobs = [(out, training, arm, seed, size) for seed in size.seeds for arm in ARMS]
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        for run in pool.map(train, jobs):
            spent.write_text(json.dumps(before + time.perf_counter() - began))
            print(f"[{time.perf_counter() - began:5.0f} s] {run.name}", file=sys.stderr, flush=True)

    cines = CineStore(out / "probing-store")
    truth = json.loads((out / "probing-cohort/truth.json").read_text())["studies"]
    hearts = HeartClips(out / "probing-cohort", ClipStore(cines), cines)
    shares = {
        arm: {
            way: [heart_share(hearts, arm, online=way == "online", batches=10, seed=seed) for seed in size.seeds]
            for way in ("stored", "online")
        }
        for arm in ARMS
    }
    results, embeddings = {}, {}
    for arm in (UNTRAINED, *ARMS):
        for seed in size.seeds:
            run = None if arm == UNTRAINED else out / "runs" / f"{arm.replace(' ', '-')}-{seed}"
            figures, vectors = measure(run, hearts, truth, seed)
            results.setdefault(arm, []).append(figures)
            embeddings.setdefault(arm, vectors)
            print(f"[{time.perf_counter() - began:5.0f} s] {arm}, seed {seed}: {figures}", file=sys.stderr, flush=True)
    seconds = before + time.perf_counter() - began
    kinds = len({study["disease"] for study in truth.values()})
    options.document.parent.mkdir(parents=True, exist_ok=True)
    options.document.write_text(document(size, results, shares, seconds, kinds))
    ef = np.array([truth[study]["ef"] for study in hearts.store.ids])
    draw_embeddings(options.document.with_suffix(".png"), embeddings, ef, "ejection fraction [%]")
    everything = {"size": asdict(size), "shares": shares, "results": results}
    (out / "results.json").write_text(json.dumps(everything, indent=1))
    print(options.document.read_text())


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
