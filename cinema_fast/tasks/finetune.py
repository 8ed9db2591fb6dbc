"""Fine-tuning: settle the task, build its model on a pre-trained encoder, step, validate, keep the best, stop early."""

import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..data.loading.loader import read_ahead
from ..data.loading.sampler import Sampler
from ..data.store.clips import CLIP, ClipStore
from ..data.store.orientation import AS_STORED_STORE, learnt_otherwise, orientation_of
from ..data.store.store import CineStore
from ..methods.pretrain import Outcome
from ..models.config import CineMAConfig, config_from_dict, preset
from ..models.conv_vit import layer_of
from ..models.weights import cinema_state_dict, load_starting_weights
from ..train.checkpoint import WholeCheckpoints, newest_weights, save_checkpoint
from ..train.log import RunLog
from ..train.memory import memory_advice
from ..train.meter import Meter, check_weights, ended_skipping
from ..train.ranks import ALONE
from ..train.run_folder import check_run_folder, lock_run_folder
from ..train.run_info import LabelInfo, RunInfo, StoreInfo, min_frames_of, read_run_info, write_run_info
from ..train.schedule import cosine_schedule
from ..train.setup import pick_device, pick_precision, restore_rng, rng_state, store_fingerprint, versions
from ..train.step import BETAS, compile_model, update
from ..train.stop import StopRequest
from .examples import Examples, fixed_draws, read_examples
from .finetune_config import FinetuneConfig
from .registry import Settled, TableTask, settle
from .seen import seen_by, seen_remarks
from .split import split_studies


def finetune(config: FinetuneConfig) -> Outcome:
    """Fine-tune, or with `config.resume` go on with a run that was stopped.

    Writes OUT/config.yaml (options, model, task, split), metrics.jsonl, run.log, checkpoints/ and best/, the weights
    of the validation with the best score. A line of metrics.jsonl has step, epoch and lr (of the last layer), loss and
    grad_norm (means since the last line), skipped, studies_per_s and data_wait as those of `pretrain`, and where a
    validation was made its figures: `score`, of which more is better, and the task's own.

    Raises:
        ValueError: options, store, labels, run folder, weights or checkpoint that do not fit (among them StoreError,
            LoaderError, CheckpointError, NonFiniteError and OutOfMemory).
        OSError: a table cannot be read, or the run folder not written.
    """
    before = read_run_info(config.out) if config.resume else None
    config = _with_start(config, before)
    cines = CineStore(config.data)
    split = split_studies(cines.ids, val=config.val, test=config.test, path=config.split)
    settled = settle(config, cines, _base_shape(config, before), split, min_frames=min_frames_of(before))
    device = pick_device(config.device)
    labels = LabelInfo(
        task=settled.task.to_dict(),
        split={part: list(studies) for part, studies in settled.split._asdict().items()},
        used=list(settled.used),
        view_sets=[{"views": list(views), "studies": n} for views, n in settled.view_sets.items()],
        fewest_slices=settled.fewest_slices,
        seen=(before and before.labels and before.labels.seen) or _seen(config, settled, cines),
    )
    info = RunInfo(
        options=config.to_dict() | {"ranks": 1},
        model=json.loads(json.dumps(dataclasses.asdict(settled.shape))),
        store=StoreInfo(
            len(cines.ids), store_fingerprint(cines), orientation_of(cines.prepare), prepare=dict(cines.prepare)
        ),
        versions=versions(),
        min_frames=settled.store.min_frames if isinstance(settled.store, ClipStore) else None,
        labels=labels,
    )
    check_run_folder(config, info)
    with memory_advice(config, **_told_of(config, settled)):
        return _finetune(config, settled, info, device, pick_precision(config.precision, device))


def _finetune(
    config: FinetuneConfig, settled: Settled, info: RunInfo, device: torch.device, precision: torch.dtype
) -> Outcome:
    task, folder = settled.task, config.out / "checkpoints"
    remarks = settled.store.remarks() if isinstance(settled.store, ClipStore) else []
    torch.manual_seed(config.seed)
    model = task.build(settled.shape, config)
    checkpoints = WholeCheckpoints(folder, behind=device.type == "cuda", keep=config.keep, ranks=ALONE)
    if config.init_from and not (config.resume and checkpoints.any()):
        remarks.append(_load(model, config, remarks.append))
        if config.init_from.is_dir():
            remarks.append(f"the model's shape is that of {config.init_from} ({config.preset}); --preset is for random "
                           "weights and files")
            remarks += learnt_otherwise(config.init_from, _start(config).store.orientation, info.store.orientation)
        remarks += seen_remarks(config.init_from, **info.labels.seen, test=settled.split.test, share=config.test)
    if info.store.orientation == "stored":
        remarks.append(AS_STORED_STORE)
    if isinstance(task, TableTask):
        task.extend(model)
    for block in model.encoder.blocks if hasattr(model, "encoder") else ():
        block.recompute = config.recompute
    if config.frozen:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(parameter.requires_grad and not name.startswith(("enc_", "encoder.")))
    model.to(device)
    optimizer = layered_adamw(model, config)
    sampler = Sampler(
        {study: settled.labels.views_of[study] for study in settled.used},
        seed=config.seed,
        batch_size=config.batch_size,
        accumulate=config.accumulate,
        augment=config.augment,
        planes=settled.planes,
    )
    read = partial(
        read_examples,
        settled.store,
        sizes=settled.shape.image_size,
        frames_of=settled.labels.frames_of,
        target_of=settled.labels.target_of,
    )
    step_of = make_step(task, model, optimizer, config, device, precision)
    schedule = cosine_schedule(
        config.steps, peak=config.lr, floor=config.min_lr, warmup=round(config.warmup * config.steps)
    )
    meter = Meter(max_skips=config.max_skips, newest=checkpoints.newest)
    best = {"score": -math.inf, "step": 0, "since": 0}
    with ExitStack() as held:
        held.enter_context(lock_run_folder(config.out, remarks.append))
        check_run_folder(config, info)  # again: until now another process could write there
        _check_same_labels(config, info.labels)
        restored = checkpoints.restore(model, optimizer, remarks.append) if config.resume else None
        if restored:
            meter.restore(restored["meter"])
            restore_rng(restored["rng"])
            best = restored["best"]
        done = restored["step"] if restored else 0
        write_run_info(config.out, info)
        log = held.enter_context(RunLog(config.out, steps=config.steps, done=done, sinks=(), info=info))
        held.enter_context(memory_advice(config, **_told_of(config, settled)))
        stop = held.enter_context(StopRequest())
        if config.resume:
            remarks.append(f"going on from step {done}" if restored else "no checkpoint yet: from the first step")
        for remark in [*remarks, *_described(config, settled, model, device, precision)]:
            log.say(remark)
        waited = _Waited()
        batches = held.enter_context(closing(_batches(config, sampler, read, done, waited)))
        meter.start_clock(0.0, 0.0)
        while done < config.steps and not _enough(best, config):
            micros = next(batches)
            for group in optimizer.param_groups:
                group["lr"] = float(schedule[done]) * group["lr_scale"]
            meter.add(done + 1, tuple(s for b in micros for s in b.draw.ids), step_of(micros, done), 0.0)
            done += 1
            log.advance(done)
            last, stopped = done == config.steps, stop.signum
            validating = last or done % config.validate_every == 0
            reporting = validating or done % config.log_every == 0
            if reporting or stopped:
                for note in meter.read():
                    log.say(note)
            if validating or stopped:
                check_weights(model, done, checkpoints.newest, ALONE)
            figures = {}
            if validating:
                figures = validate(settled, model, read, config.batch_size, device, precision)
                best = _better(best, figures, done)
                if best["step"] == done:
                    _save_best(config, done, model, figures)
            if reporting:
                line = {"step": done, "epoch": round(done * sampler.global_batch / len(settled.used), 6),
                        "lr": float(schedule[done - 1]), **meter.line(waited.seconds, None, sampler.global_batch)}
                del line["tflops"], line["replaced"]  # not counted here, and never done
                log.metrics(line | figures, batch=sampler.global_batch)
                if figures:
                    log.say(f"validation at step {done}: " + ", ".join(f"{k} {v:.4g}" for k, v in figures.items())
                            + f"; best {best['score']:.4g} at step {best['step']}")
            if validating or stopped:
                log.sync()
                state = {"meter": meter.state(), "rng": rng_state(), "best": best, **info.to_dict()}
                checkpoints.save(done, model, optimizer, state)
            if stopped and not last:
                checkpoints.finish()
                log.say(f"stopped by signal {stopped} after step {done} and saved; go on with --resume")
                return Outcome(config.out, done, stopped)
        checkpoints.finish()
        if _enough(best, config):
            log.say(f"stopped early: no better score in {best['since']} validations")
        log.say(f"best weights: step {best['step']}, in {config.out / 'best'}")
        if skipped := meter.skipped_at_end(done):
            log.say(ended_skipping(skipped, done))
    return Outcome(config.out, done, skipped=skipped)


def layered_adamw(model: nn.Module, config: FinetuneConfig) -> torch.optim.AdamW:
    """AdamW of the reference's recipe: the learning rate of a layer is `layer_decay` of that of the next one.

    A group's `lr_scale` is what its layer takes of the learning rate. No weight decay on 1-D parameters.
    """
    depth = len(model.encoder.blocks) if hasattr(model, "encoder") else None
    groups: dict[tuple[float, float], dict] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        scale = 1.0 if depth is None else config.layer_decay ** (depth + 1 - layer_of(name, depth))
        decay = config.weight_decay if parameter.ndim > 1 else 0.0
        fresh = {"params": [], "weight_decay": decay, "lr_scale": scale}
        groups.setdefault((scale, decay), fresh)["params"].append(parameter)
    return torch.optim.AdamW(list(groups.values()), lr=config.lr, betas=BETAS, fused=True)


def make_step(
    task, model: nn.Module, optimizer: torch.optim.Optimizer, config: FinetuneConfig, device: torch.device,
    precision: torch.dtype,
) -> Callable[[Sequence[Examples], int], Tensor]:
    """The step as a function of (micro-batches, number); returns loss, gradient norm and whether it was made, (3,).

    Dropout, drop path and blanked boxes are a function of (seed, step, micro-batch).
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    called = compile_model(model) if config.mode == "compile" else model

    def step_of(batches: Sequence[Examples], step: int) -> Tensor:
        model.train()
        total = torch.zeros((), device=device)
        for micro, batch in enumerate(batches):
            words = np.random.SeedSequence([config.seed, step, micro]).generate_state(2, np.uint32).tolist()
            torch.manual_seed(words[0] << 31 | words[1] >> 1)
            with _autocast(device, precision):
                loss = task.loss(called, batch.to(device), config.blank) / len(batches)
            loss.backward()
            total += loss.detach()
        return update(optimizer, trained, total, clip=config.clip)

    return step_of


@torch.no_grad()
def validate(
    settled: Settled, model: nn.Module, read: Callable, batch_size: int, device: torch.device, precision: torch.dtype
) -> dict[str, float]:
    """Figures of the studies of validation, `score` among them; none where there are none."""
    if not settled.split.val:
        return {}
    model.eval()
    views_of = {study: settled.labels.views_of[study] for study in settled.split.val}
    draws = fixed_draws(
        views_of,
        settled.task.validation_phases,
        batch_size=batch_size,
        frames_of=settled.labels.frames_of,
        planes=settled.planes,
    )
    with _autocast(device, precision):
        return settled.task.validate(model, (read(draw).to(device) for draw in draws))


def _autocast(device: torch.device, precision: torch.dtype) -> torch.autocast:
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == torch.bfloat16)


def _with_start(config: FinetuneConfig, before: RunInfo | None) -> FinetuneConfig:
    """The options with where a run that goes on began, and the preset of the run that weights come from."""
    if before and before.labels and (start := before.options["init_from"]):
        config = dataclasses.replace(config, init_from=config.init_from or Path(start))
        if config.to_dict()["init_from"] == start:
            return dataclasses.replace(config, preset=before.options["preset"])
    if config.init_from and config.init_from.is_dir():
        return dataclasses.replace(config, preset=_start(config).options["preset"])
    return config


def _base_shape(config: FinetuneConfig, before: RunInfo | None = None) -> CineMAConfig:
    """The shape of this run where it goes on, of the run that its weights come from, or of the preset."""
    if before:
        return config_from_dict(before.model)
    if config.init_from and config.init_from.is_dir():
        return config_from_dict(_start(config).model)
    return preset(config.preset)


def _start(config: FinetuneConfig) -> RunInfo:
    """What the run is made of that weights come from."""
    info = read_run_info(config.init_from)
    if info is None:
        raise ValueError(f"--init-from {config.init_from}: no run in this folder (no config.yaml)")
    return info


def _load(model: nn.Module, config: FinetuneConfig, say: Callable[[str], None]) -> str:
    """Put the weights of --init-from into the model; says what was taken and what not."""
    source, name = config.init_from, str(config.init_from)
    if source.is_dir():
        source, name = newest_weights(source, say)
    try:
        said, absent = load_starting_weights(model, source, name)
    except FileNotFoundError as error:
        raise ValueError(f"--init-from: {error}") from None
    if config.frozen and absent:
        raise ValueError(
            f"--frozen: {config.init_from} has no {', '.join(absent)} to leave as it is: start without --frozen, or "
            "from other weights"
        )
    return f"weights of {name}: {said}"


def _seen(config: FinetuneConfig, settled: Settled, cines: CineStore) -> dict:
    """The studies that the run and those it starts from learn from, for `LabelInfo`, and why there may be others."""
    seen, unknown = seen_by(config.init_from, cines) if config.init_from else (set(), [])
    return {"studies": sorted(seen.union(settled.used, settled.split.val)), "unknown": unknown}


def _told_of(config: FinetuneConfig, settled: Settled) -> dict:
    """What `memory_advice` is to say of the run."""
    size = "another network" if config.init_from else "a smaller --preset"
    views = f", or with fewer --views than {', '.join(settled.shape.views)}" * (len(settled.shape.views) > 1)
    return {
        "model": f"{settled.task.kind} with {_origin(config)}",
        "recomputes": config.network != "baseline",
        "smaller": f"with {size}{views}",
    }


def _origin(config: FinetuneConfig) -> str:
    if config.network == "baseline":
        return "the baseline's network"
    return f"the model of {config.init_from}" if config.init_from else config.preset


class _Waited:
    """Seconds for which steps have waited for data."""

    seconds = 0.0


def _batches(
    config: FinetuneConfig, sampler: Sampler, read: Callable, start: int, waited: _Waited
) -> Iterator[tuple[Examples, ...]]:
    """The micro-batches of each step from `start` on, read ahead."""
    todo = ((step, micro) for step in range(start, config.steps) for micro in range(config.accumulate))
    ahead = 2 * max(config.workers, config.accumulate)
    examples = read_ahead(
        lambda at: read(sampler.draw(at[0], micro=at[1])), todo, workers=config.workers, ahead=ahead
    )
    for _ in range(start, config.steps):
        asked = time.perf_counter()
        ready = tuple(next(examples) for _ in range(config.accumulate))
        waited.seconds += time.perf_counter() - asked
        yield ready


def _better(best: dict, figures: dict[str, float], step: int) -> dict:
    """The best so far; without studies of validation the newest."""
    if not figures or figures["score"] > best["score"]:
        return {"score": figures.get("score", 0.0), "step": step, "since": 0}
    return best | {"since": best["since"] + 1}


def _enough(best: dict, config: FinetuneConfig) -> bool:
    return bool(config.patience) and best["since"] >= config.patience


def _save_best(config: FinetuneConfig, step: int, model: nn.Module, figures: dict[str, float]) -> None:
    save_checkpoint(config.out / "best", step, cinema_state_dict(model), {"figures": figures}, keep=1)


def _check_same_labels(config: FinetuneConfig, labels: LabelInfo) -> None:
    """Raise ValueError where a run would go on with other labels, or other studies for them."""
    before = read_run_info(config.out) if config.resume else None
    for part in ("task", "split", "used"):
        if before and getattr(before.labels, part, None) != getattr(labels, part):
            raise ValueError(
                f"{config.out} was begun with other labels ({part} differs from its config.yaml): put them back, or "
                "begin another run (--out)"
            )


def _described(config: FinetuneConfig, settled: Settled, model: nn.Module, device, precision) -> Iterator[str]:
    split, trained = settled.split, sum(p.numel() for p in model.parameters() if p.requires_grad)
    yield (
        f"{config.task} on {len(settled.used)} of {len(split.train)} labelled training studies, {len(split.val)} for "
        f"validation, {len(split.test)} for the test; views {', '.join(settled.shape.views)}"
    )
    yield (
        f"{type(model).__name__}, {trained / 1e6:.3g} M parameters trained{', encoder frozen' * config.frozen}; "
        f"{config.batch_size * config.accumulate} studies a step, lr {config.lr:g}; {device.type}, "
        f"{str(precision)[6:]}, {config.mode}"
    )
    for view, size in settled.shape.image_size.items():
        side = min(size[1:] if view == CLIP else size[:2])
        if 2 * config.augment.translation > side and config.augment.translation_share:
            yield (
                f"--augment.translation {config.augment.translation:g} moves many images of {view}, of {side} pixels, "
                "out of sight: want less than half of that"
            )
    if not split.val:
        yield "no studies of validation: the last weights are kept as the best"
    if not split.test:
        yield "no labelled studies for the test: evaluate wants others by --data, or another --part"
