"""Masked pre-training from a cine store: settle, build, resume, step, report."""

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from ..common.naming import named
from ..data.loading.dali import make_loader, pick_loader
from ..data.loading.loader import LoaderError
from ..data.loading.sampler import Sampler, held_out
from ..data.store.clips import ClipStore
from ..data.store.orientation import AS_STORED_STORE, learnt_otherwise, orientation_of
from ..data.store.store import CineStore
from ..models.cinema import CineMA
from ..models.config import CLIP
from ..models.weights import load_cinema_weights, load_shared_views
from ..train.checkpoint import WholeCheckpoints, newest_weights, save_checkpoint
from ..train.graph import CudaCapture
from ..train.log import RankLog, RunLog
from ..train.memory import memory_advice
from ..train.meter import Meter, check_weights, ended_skipping
from ..train.profile import profile_steps
from ..train.ranks import Agreement, Ranks, joined_ranks, shard_model
from ..train.run_folder import check_run_folder, lock_run_folder
from ..train.run_info import RunInfo, StoreInfo, min_frames_of, read_run_info, write_run_info
from ..train.schedule import cosine_schedule
from ..train.setup import (
    check_mode,
    model_config,
    pick_device,
    pick_precision,
    restore_rng,
    rng_state,
    store_fingerprint,
    versions,
)
from ..train.sharded_checkpoint import ShardedCheckpoints, whole_weights
from ..train.sinks import check_sinks
from ..train.step import adamw, make_train_step
from ..train.stop import StopRequest
from ..train.usage import Usage
from .evaluation import Evaluation, evaluate, mean_patches
from .guidance import Guidance, check_guidance, check_online, motion_views
from .pretrain_config import PretrainConfig
from .report import write_report


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    step: steps made. signum: the signal that stopped it early, or None. evaluation: what held-out studies say; None
    where none were held out or, as run.log then says, none could be judged. skipped: updates that were skipped at its
    end (`Meter.skipped_at_end`).
    """

    out: Path
    step: int
    signum: int | None = None
    evaluation: Evaluation | None = None
    skipped: int = 0

    @property
    def exit_code(self) -> int:
        """0: all steps made; 1: but the last 5 updates (of fewer, all) were skipped; 128 + signal (143 SIGTERM, 130
        Ctrl-C): stopped early, and saved."""
        if self.signum is not None:
            return 128 + self.signum
        return 1 if self.skipped else 0


def pretrain(config: PretrainConfig) -> Outcome:
    """Pre-train, or with `config.resume` go on with a run that was stopped.

    Writes OUT/config.yaml, metrics.jsonl, run.log, checkpoints/, report/ and, asked for, profile/. A line of
    metrics.jsonl has step, epoch and lr (at that step), loss and grad_norm (means since the last line), skipped and
    replaced (so far), studies_per_s, tflops (useful ones a second, of a rank), on a GPU mfu, peak_mib (memory; on a GPU
    since the last line), data_wait (share of the time in which a step waited for data) and, where motion guides the
    masks and a step is no graph, guidance (share of the time that went into their weights).

    After the last step held-out studies are judged on the views that some training study has (views only they have are
    named before the first step). Studies that cannot be read are left out and named, with `config.strict` they end the
    run; whatever else keeps a finished run from its evaluation or pictures is said, and is no failure of the run.

    Raises:
        ValueError: options, store, run folder or checkpoint that do not fit (StoreError, LoaderError, CheckpointError,
            NonFiniteError and OutOfMemory are among them).
        OSError: the run folder cannot be written.
    """
    with memory_advice(config), joined_ranks() as ranks:
        return _pretrain(config, ranks)


def _pretrain(config: PretrainConfig, ranks: Ranks) -> Outcome:
    cines = CineStore(config.data)
    shape = model_config(config, cines)
    before = read_run_info(config.out) if config.resume else None
    store = ClipStore(cines, config.views, min_frames=min_frames_of(before)) if CLIP in shape.views else cines
    training, away, unseen = _split(store, shape.views, config.holdout)
    sampler = Sampler(
        training,
        seed=config.seed,
        batch_size=config.batch_size,
        accumulate=config.accumulate,
        world=ranks.world,
        augment=config.augment,
        planes={study: len(store.planes(study)) for study in training} if CLIP in shape.views else None,
    )
    device = ranks.place(pick_device(config.device))
    precision = pick_precision(config.precision, device)
    check_mode(config, device, ranks)
    reader, why = pick_loader(config.loader, device)
    check_sinks(config.sinks)
    guided, maps = config.mask.guidance == "motion", config.motion == "stored"
    if guided and maps:
        check_guidance(cines, {study: motion_views(store, shape.views, study) for study in (*training, *away)})
    if guided and not maps:
        check_online(device)
    guidance = Guidance(config.mask, shape, steps=config.steps, online=not maps, device=device) if guided else None
    warmup = round(config.warmup * config.steps)
    schedule = cosine_schedule(config.steps, peak=config.lr, floor=config.min_lr, warmup=warmup)
    info = RunInfo(
        options=config.to_dict() | {"ranks": ranks.world},
        model=json.loads(json.dumps(dataclasses.asdict(shape))),
        store=StoreInfo(len(cines.ids), store_fingerprint(cines), orientation_of(cines.prepare)),
        versions=versions(),
        min_frames=store.min_frames if isinstance(store, ClipStore) else None,
    )
    if ranks.main:
        check_run_folder(config, info)

    remarks = store.remarks() if isinstance(store, ClipStore) else []
    torch.manual_seed(config.seed)
    model = CineMA(shape).to(device)
    model.recompute(config.recompute)
    sharded, folder, how = config.parallel == "fsdp", config.out / "checkpoints", {"keep": config.keep, "ranks": ranks}
    behind = device.type == "cuda"
    checkpoints = ShardedCheckpoints(folder, **how) if sharded else WholeCheckpoints(folder, behind=behind, **how)
    begun = config.resume and ranks.most(int(checkpoints.any()))
    if config.init_from and not begun:
        _load_start(model, config, info.store, ranks, remarks.append)
    if sharded:
        shard_model(model, ranks, device)
    optimizer = adamw(model, lr=config.lr, weight_decay=config.weight_decay)
    meter = Meter(max_skips=config.max_skips, newest=checkpoints.newest)

    with ExitStack() as held:
        if ranks.main:
            held.enter_context(lock_run_folder(config.out, remarks.append))
            check_run_folder(config, info)  # again: until now another process could write there
        ranks.wait()
        restored = checkpoints.restore(model, optimizer, remarks.append) if config.resume else None
        if restored:
            meter.restore(restored["meter"] if ranks.main else restored["meter"] | {"replaced": 0})
            restore_rng(restored["rng"])
        done = restored["step"] if restored else 0
        if ranks.main:
            write_run_info(config.out, info)
        told = {"sinks": config.sinks, "info": info}
        log = held.enter_context(
            RunLog(config.out, steps=config.steps, done=done, **told) if ranks.main else RankLog(config.out, ranks.rank)
        )
        held.enter_context(memory_advice(config))  # so that the log has it too
        profiled = config.profile if ranks.main else 0
        step_done = held.enter_context(profile_steps(profiled, device, config.out / "profile", log.say))
        stop = held.enter_context(StopRequest())
        if config.resume:
            remarks.append(f"going on from step {done}" if restored else "no checkpoint yet: from the first step")
        clips = f"clips of {', '.join(config.views) or 'every view'}"
        seen = clips if CLIP in shape.views else f"views {', '.join(shape.views)}"
        remarks.append(
            f"{config.preset} on {len(training)} studies ({len(away)} held out), {seen}; "
            f"{sampler.global_batch} studies a step, lr {config.lr:g}; "
            f"{device.type}, {str(precision)[6:]}, {config.mode}"
        )
        if guidance:
            whence = "the store's maps" if maps else "each clip's own frames"
            remarks.append(f"masks {config.mask.mode} what moves, by {whence}; strength {config.mask.strength:g}")
        if ranks.hosts:
            remarks.append(f"{ranks.world} ranks, {config.parallel}")
        remarks.append(f"loader {reader} ({why}), {config.workers} workers")
        if orientation_of(cines.prepare) == "stored":
            remarks.append(AS_STORED_STORE)
        if unseen:
            remarks.append(f"no training study has {', '.join(unseen)}: held-out studies are judged without")
        for remark in remarks:
            log.say(remark)
        train_step = make_train_step(
            model,
            optimizer,
            device=device,
            precision=precision,
            mask_ratio=config.mask_ratio,
            decode_ratio=config.decode_ratio,
            seed=config.seed,
            clip=config.clip,
            guidance=guidance,
            ranks=ranks,
            sharded=sharded,
            view_sets=len(sampler.groups),
            compiled=config.mode != "eager",
            capture=CudaCapture(device) if config.mode == "graph" else None,
        )
        usage = Usage(shape, config, device)
        loader = make_loader(
            reader,
            store,
            sampler,
            shape.image_size,
            device=device,
            start=done,
            stop=config.steps,
            rank=ranks.rank,
            workers=config.workers,
            strict=config.strict,
            motion=guided and maps,
        )
        stopping = Agreement(ranks)
        replaced: Counter[str] = Counter()
        meter.start_clock(loader.waited, 0.0)
        for step, batches in enumerate(loader, start=done):
            done = step + 1
            for note in (note for batch in batches for note in batch.notes):
                meter.replaced += 1
                log.say(note)
            replaced.update(study for batch in batches for study in batch.replaced)
            ids = tuple(study for batch in batches for study in batch.draw.ids)
            meter.add(done, ids, train_step(batches, step, float(schedule[step])), usage.flops(batches))
            log.advance(done)
            step_done()
            last = done == config.steps
            stopped = stopping.after(stop.signum or 0, last=last)
            saving = last or stopped or done % config.checkpoint_every == 0
            reporting = last or done % config.log_every == 0
            if saving or reporting:
                for note in meter.read():
                    log.say(note)
            if reporting:
                epoch = round(done * sampler.global_batch / len(training), 6)
                line = {"step": done, "epoch": epoch, "lr": float(schedule[step])}
                spent = guidance.seconds() if guidance and config.mode != "graph" else None
                line |= usage.line(meter.line(loader.waited, spent, sampler.global_batch))
                line["replaced"] = ranks.sum(meter.replaced)
                log.metrics(line, batch=sampler.global_batch)
            if saving:
                check_weights(model, done, checkpoints.newest, ranks)
                log.sync()
                counts = meter.state() | {"replaced": ranks.sum(meter.replaced)}
                state = {"meter": counts, "rng": rng_state(), **info.to_dict()}
                state["sampler"] = {"step": done, "global_batch": sampler.global_batch}
                checkpoints.save(done, model, optimizer, state)
            if stopped and not last:
                checkpoints.finish()
                log.say(f"stopped by signal {stopped} after step {done} and saved; go on with --resume")
                return Outcome(config.out, done, stopped)
        checkpoints.finish()
        if times := ranks.sum(meter.replaced):
            log.say(_replaced(times, replaced))
        if skipped := meter.skipped_at_end(done):
            log.say(ended_skipping(skipped, done))
        if sharded:
            weights = whole_weights(model)  # of all ranks: from here on the main one works alone
            model = CineMA(shape).to(device)
            load_cinema_weights(model, weights)
            if ranks.main:  # for all that reads a run's weights
                save_checkpoint(folder, done, weights, {"meter": meter.state(), **info.to_dict()}, keep=config.keep)
        if not ranks.main:
            return Outcome(config.out, done, skipped=skipped)
        how = {"device": device, "precision": precision, "guidance": guidance}
        evaluation = _judge(config, log, model, store, list(training), away, **how)
    return Outcome(config.out, done, evaluation=evaluation, skipped=skipped)


def _replaced(times: int, seen: Counter[str]) -> str:
    """How often in all a study could not be read while training, and which this process has `seen` so, in words."""
    told = [named([f"{study} ({_times(n)})" for study, n in seen.most_common()])] * bool(seen)
    rest = times - seen.total()
    told += [f"{_times(rest)} on other ranks or before the run was resumed"] * bool(rest)
    return (f"{_times(times)} a study could not be read while training, and another took its place: "
            f"{'; '.join(told)}. The lines of these steps say why, and `cinema-fast verify` checks the whole store")


def _times(n: int) -> str:
    return "once" if n == 1 else f"{n} times"


def _load_start(
    model: CineMA, config: PretrainConfig, store: StoreInfo, ranks: Ranks, say: Callable[[str], None]
) -> None:
    """Put the weights of --init-from, a file or the folder of a run of `pretrain`, into the model; says what was taken.

    store: what this run keeps of its own.
    """
    start = config.init_from
    if not start.is_dir():
        say(load_shared_views(model, start))
        return
    info = read_run_info(start)
    if info is None:
        raise ValueError(f"--init-from {start}: no run in this folder (no config.yaml)")
    if info.labels:
        raise ValueError(f"--init-from {start}: a run of finetune, whose weights have no decoder to go on with; want "
                         "one of pretrain")
    if (size := info.options["preset"]) != config.preset:
        raise ValueError(f"--init-from {start}: a run of --preset {size}, this one is to be of {config.preset}: give "
                         f"--preset {size}, or start from another run")
    say(load_shared_views(model, *newest_weights(start, say, ranks)))
    for remark in learnt_otherwise(start, info.store.orientation, store.orientation):
        say(remark)


def _split(
    store: CineStore | ClipStore, views: tuple[str, ...], share: float
) -> tuple[dict[str, tuple[str, ...]], list[str], list[str]]:
    """{training study: its views among `views`}, the studies held out, and the views that only these have.

    A study with none of the views is in neither. Raises ValueError where no held-out study could be judged.
    """
    usable = {study: tuple(v for v in store.views(study) if v in views) for study in store.ids}
    usable = {study: has for study, has in usable.items() if has}
    away = sorted(held_out(usable, share))
    training = {study: has for study, has in usable.items() if study not in away}
    trained = {view for has in training.values() for view in has}
    if away and not any(trained.intersection(usable[study]) for study in away):
        raise ValueError(
            f"--holdout {share:g}: no held-out study ({named(away)}) has a view of "
            f"the training studies ({', '.join(v for v in views if v in trained)}); hold out another share"
        )
    unseen = {view for study in away for view in usable[study]} - trained
    return training, away, [view for view in views if view in unseen]


def _judge(
    config: PretrainConfig, log: RunLog, model: CineMA, store: CineStore | ClipStore, training: list[str],
    away: list[str], *, device: torch.device, precision: torch.dtype, guidance: Guidance | None,
) -> Evaluation | None:  # fmt: skip
    """Evaluation and pictures of a run that is finished and saved. Raises LoaderError with `config.strict` only."""
    unreadable = None if config.strict else {}
    common = {"mask_ratio": config.mask_ratio, "device": device, "precision": precision, "unreadable": unreadable}
    size, evaluation = config.batch_size, None
    with _said("evaluation", log, config.strict):
        if away:
            blind = mean_patches(store, model.config, training, batch_size=size, device=device, unreadable=unreadable)
            evaluation = evaluate(model, store, away, blind, batch_size=size, **common)
            log.say(f"{evaluation.studies} held-out studies: {evaluation}")
    with _said("report", log, config.strict):
        told = {"evaluation": evaluation, "guidance": guidance}
        pictures = write_report(config.out, model, store, away or training, **told, **common)
        log.say(f"pictures: {', '.join(str(path) for path in pictures)}")
    if unreadable:
        lines = named([f"{study}: {why}" for study, why in unreadable.items()], "\n  ")
        log.say(f"cannot be read, so neither judged nor drawn ({len(unreadable)}):\n  {lines}")
    return evaluation


@contextmanager
def _said(what: str, log: RunLog, strict: bool) -> Iterator[None]:
    """Says what went wrong in the block, whatever it is: hours of training are not to end as a failure for it."""
    try:
        yield
    except Exception as error:
        if strict and isinstance(error, LoaderError):
            raise
        log.say(f"the run is finished and saved, but there is no {what}: {type(error).__name__}: {error}")
