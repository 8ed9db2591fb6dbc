"""The training loop of all methods: begin or resume, step, report, validate, save, stop, end."""

import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from ..common.naming import counted, named
from ..data.loading.batch import Batch
from ..data.loading.dali import make_loader, pick_loader
from ..data.loading.loader import LoaderError
from ..data.store.clips import ClipStore
from ..data.store.orientation import AS_STORED_STORE
from ..models.weights import cinema_state_dict, load_cinema_weights
from .best import Best
from .checkpoint import WholeCheckpoints, save_checkpoint
from .graph import CudaCapture
from .log import RankLog, RunLog
from .memory import memory_advice, ran_out
from .meter import Meter, check_weights, ended_skipping
from .method import Method, Place
from .optimizer import cosine_schedule
from .options import RunOptions
from .profile import profile_steps
from .ranks import ALONE, Agreement, joined_ranks, shard_model
from .run_folder import check_run_folder, lock_run_folder
from .run_info import write_run_info
from .setup import check_mode, pick_device, pick_precision, restore_rng, rng_state
from .sharded_checkpoint import ShardedCheckpoints, whole_weights
from .sinks import check_sinks
from .step import make_train_step
from .stop import StopRequest

NEAR_ZERO = 0.01  # below this score `Validation.warning_at_zero` is given


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    step: steps made. signum: the signal that stopped it early, or None. evaluation: the result of `Method.finish`;
    None where nothing was evaluated. skipped: updates that were skipped at its end (`Meter.skipped_at_end`).
    """

    out: Path
    step: int
    signum: int | None = None
    evaluation: object = None
    skipped: int = 0

    @property
    def exit_code(self) -> int:
        """0: all steps made. 1: the last 5 updates (or all, if there were fewer) were skipped. 128 + signal (143
        SIGTERM, 130 Ctrl-C): stopped early, and saved."""
        if self.signum is not None:
            return 128 + self.signum
        return 1 if self.skipped else 0


def train(options: RunOptions, make: Callable[[Place], Method]) -> Outcome:
    """Train a method, or with `options.resume` continue a run that was stopped.

    Writes OUT/config.yaml, metrics.jsonl, run.log, checkpoints/, with --profile also profile/, and with validations
    best/. A line of metrics.jsonl has step, epoch and lr (at that step; the highest of the layers), loss and grad_norm
    (means since the last line), skipped and replaced (so far), studies_per_s, peak_mib, data_wait (share of the time
    in which a step waited for data), tflops and, on a GPU, mfu where FLOPs are counted (see `Meter.line`), and the
    method's own figures.

    A study that cannot be read is replaced by another; with `options.strict` it ends the run. Before an error of the
    data ends a run, the progress so far is saved, as on a signal (but not for a sharded model).

    Args:
        make: builds the method (see `Method`) and checks its options, before anything is written.

    Raises:
        ValueError: options, store, run folder or checkpoint that do not fit (StoreError, LoaderError, CheckpointError,
            NonFiniteError and OutOfMemory are among them).
        OSError: the run folder cannot be written, or a table cannot be read.
    """
    with joined_ranks() as ranks:
        with memory_advice(options):
            device = ranks.place(pick_device(options.device))
            check_mode(options, device, ranks)
            check_sinks(options.sinks)
            reader, why = pick_loader(options.loader, device)
            method = make(Place(device, pick_precision(options.precision, device), ranks))
            if ranks.main:
                check_run_folder(options, method.info)
        with memory_advice(options, **method.memory):
            return _Run(method, reader).run(why)


class _Run:
    """A run of a method: its model, optimiser and checkpoints, its counters, and the steps made."""

    def __init__(self, method: Method, reader: str):
        self.method, self.options, self.place, self.ranks = method, method.options, method.place, method.place.ranks
        self.reader, self.remarks = reader, []
        options, device, ranks = self.options, self.place.device, self.ranks
        if isinstance(method.store, ClipStore):
            self.remarks += method.store.remarks()
        torch.manual_seed(options.seed)
        self.model = method.build()
        self.sharded, folder = options.parallel == "fsdp", options.out / "checkpoints"
        self.checkpoints = (
            ShardedCheckpoints(folder, keep=options.keep_checkpoints, ranks=ranks) if self.sharded
            else WholeCheckpoints(folder, keep=options.keep_checkpoints, ranks=ranks, async_save=device.type == "cuda")
        )  # fmt: skip
        begun = options.resume and ranks.most(int(self.checkpoints.any()))
        if options.init_from and not begun:
            method.load_start(self.model, self.remarks.append)
        self.model.to(device)
        if self.sharded:
            shard_model(self.model, method.units(self.model), ranks, device)
        self.optimizer = method.optimizer(self.model)
        self.meter = Meter(max_skips=options.max_skips, newest=self.checkpoints.newest)
        self.best = Best(method.validation, options.out) if method.validation else None
        self.replaced: Counter[str] = Counter()
        self.done = self.saved = 0  # steps made, and at the newest checkpoint

    def run(self, why: str) -> Outcome:
        """The whole run. why: reason for the choice of the data loader."""
        options, ranks = self.options, self.ranks
        with ExitStack() as held:
            if ranks.main:
                held.enter_context(lock_run_folder(options.out, self.remarks.append))
                check_run_folder(options, self.method.info)  # again: until now others could write there
            ranks.wait()
            self._restore()
            if ranks.main:
                write_run_info(options.out, self.method.info)
                log = RunLog(options.out, steps=options.steps, done=self.done, sinks=options.sinks,
                             info=self.method.info)  # fmt: skip
            else:
                log = RankLog(options.out, ranks.rank)
            self.log = held.enter_context(log)
            held.enter_context(memory_advice(options, **self.method.memory))  # inside the log, so that it is logged too
            profiled = options.profile if ranks.main else 0
            step_done = held.enter_context(
                profile_steps(profiled, self.place.device, options.out / "profile", self.log.say)
            )
            stop = held.enter_context(StopRequest())
            self._describe(why)
            if stopped := self._train(stop, step_done):
                return Outcome(options.out, self.done, stopped)
            return self._end()

    def _restore(self) -> None:
        """With --resume, continue from the newest checkpoint, if there is one."""
        if not self.options.resume:
            return
        restored = self.checkpoints.restore(self.model, self.optimizer, self.remarks.append)
        if restored:
            self.meter.restore(restored["meter"] if self.ranks.main else restored["meter"] | {"replaced": 0})
            restore_rng(restored["rng"])
            if self.best:
                self.best.restore(restored["best"], restored["step"])
            self.method.restore(restored.get("method", {}))
            self.done = self.saved = restored["step"]
        self.remarks.append(
            f"resuming from step {self.done}" if restored else "no checkpoint yet: starting from the first step"
        )

    def _describe(self, why: str) -> None:
        self.remarks += self.method.remarks(self.model)
        if self.ranks.hosts:
            self.remarks.append(f"{self.ranks.world} ranks, {self.options.parallel}")
        readers = counted(self.options.workers, "reading process" if self.reader == "dali" else "reading thread",
                          "reading processes" if self.reader == "dali" else "")  # fmt: skip
        self.remarks.append(f"loader {self.reader} ({why}), {readers}{' on each rank' * bool(self.ranks.hosts)}")
        if self.method.info.store.orientation == "stored":
            self.remarks.append(AS_STORED_STORE)
        for remark in self.remarks:
            self.log.say(remark)

    def _train(self, stop: StopRequest, step_done: Callable[[], None]) -> int:
        """Make steps until the last one or until early stopping; returns the signal that stopped it, or 0."""
        method, options, device = self.method, self.options, self.place.device
        schedule = cosine_schedule(
            options.steps, peak=options.lr, floor=options.min_lr, warmup=round(options.warmup * options.steps)
        )
        self.step = make_train_step(
            method.loss,
            self.model,
            self.optimizer,
            device=device,
            update=method.update,
            seed=options.seed,
            ranks=self.ranks,
            sharded=self.sharded,
            unused=method.unused,
            compiled=options.mode != "eager",
            capture=CudaCapture(device) if options.mode == "graph" else None,
            after_update=method.after_update,
        )
        self.loader = make_loader(
            self.reader,
            method.store,
            method.sampler,
            method.sizes,
            device=device,
            start=self.done,
            stop=options.steps,
            rank=self.ranks.rank,
            workers=options.workers,
            strict=options.strict,
            motion=method.motion,
            labels=method.labels,
        )
        stopping, first = Agreement(self.ranks), self.done
        self.meter.start_clock(self._spent())
        began = time.perf_counter()
        with self._rescued():
            if self.best and self.best.at < self.done and self._validation_due():  # it failed before: unreadable data
                self._after_step(float(schedule[self.done - 1]), stopped=False, last=self.done == options.steps)
            for micros in self.loader if not (self.best and self.best.enough()) else ():
                self._take(micros, float(schedule[self.done]))
                step_done()
                if self.done == first + 1:
                    self._say_first(time.perf_counter() - began)
                last = self.done == options.steps
                stopped = stopping.after(stop.signum or 0, last=last)
                self._after_step(float(schedule[self.done - 1]), stopped=bool(stopped), last=last)
                if stopped and not last:
                    self.checkpoints.finish()
                    name = "Ctrl-C" if stopped == signal.SIGINT else signal.Signals(stopped).name
                    self.log.say(f"stopped by {name} after step {self.done} and saved; continue with --resume")
                    return stopped
                if not last and self.best and self.best.enough():
                    stopping.after(0, last=True)
                    break
        return 0

    def _take(self, micros: Sequence[Batch], lr: float) -> None:
        """Make a step."""
        for note in (note for batch in micros for note in batch.notes):
            self.log.say(note)
        ids = tuple(study for batch in micros for study in batch.draw.ids)
        result = self.step(micros, self.done, lr)
        self.done += 1
        lost = [study for batch in micros for study in batch.replaced]
        self.meter.replaced += len(lost)
        self.replaced.update(lost)
        self.meter.add(self.done, ids, result, self.method.flops(micros))
        self.log.advance(self.done)

    def _after_step(self, lr: float, *, stopped: bool, last: bool) -> None:
        """Report, validate and save, where due."""
        options, done = self.options, self.done
        validating = self.best is not None and self._validation_due()
        saving = last or stopped or validating or done % options.checkpoint_every == 0
        reporting = last or validating or done % options.log_every == 0
        if saving or reporting:
            for note in self.meter.read():
                self.log.say(note)
        replaced = self.ranks.sum(self.meter.replaced) if reporting else 0
        if validating:
            check_weights(self.model, done, self.checkpoints.newest, self.ranks)
        figures = self._validate() if validating else {}
        if reporting:
            own = self.method.figures(self.model, done, self.log.say)
            self._report(lr, replaced, own, figures)
        if saving:
            if not validating:
                check_weights(self.model, done, self.checkpoints.newest, self.ranks)
            self._save()

    def _validation_due(self) -> bool:
        return self.done == self.options.steps or self.done % self.method.validation.every == 0

    def _validate(self) -> dict[str, float]:
        self.model.eval()
        figures = self.method.validate(self.model, self.log.say)
        self.model.train()
        if self.sharded:
            self.model.reshard()  # FSDP keeps parameters outside of the units gathered until a backward pass
        if figures:  # so that all ranks find the same best
            figures = figures | {"score": self.ranks.from_main(figures["score"])}
        if self.best.judge(self.done, figures):
            weights = whole_weights(self.model) if self.sharded else cinema_state_dict(self.model)
            if self.ranks.main:
                self.best.save(weights, figures)
        return figures

    def _spent(self) -> dict[str, float]:
        return {"data_wait": self.loader.waited, **self.method.seconds()}

    def _report(self, lr: float, replaced: int, own: dict[str, float | None], figures: dict[str, float]) -> None:
        """Write a line of metrics.jsonl. replaced: studies replaced so far, on all ranks. own: the method's figures;
        figures: those of a validation."""
        sampler = self.method.sampler
        line = {"step": self.done, "epoch": round(self.done * sampler.global_batch / len(sampler.ids), 6), "lr": lr}
        line |= self.meter.line(self._spent(), sampler.global_batch, self.place.device)
        self.log.metrics(line | {"replaced": replaced} | own | figures, batch=sampler.global_batch)
        if figures:
            scores = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
            best = f"best score so far {self.best.score:.4g}, at step {self.best.step}"
            self.log.say(f"validation at step {self.done}: {scores}; {best}")

    def _say_first(self, seconds: float) -> None:
        """Log the time of the first step, as the first line of metrics.jsonl may take long."""
        for note in self.meter.read():  # waits for the device
            self.log.say(note)
        settling = ", compiling included" * (self.options.mode != "eager")
        left = self.options.steps - self.done
        self.log.say(f"the first step took {seconds:.3g} s{settling}; {left} to go")

    def _save(self, *, together: bool = True) -> None:
        """Write a checkpoint. together: all ranks take part."""
        self.log.sync()
        ranks = self.ranks if together else ALONE
        state = {
            "meter": self.meter.state() | {"replaced": ranks.sum(self.meter.replaced)},
            "rng": rng_state(),
            "sampler": {"step": self.done, "global_batch": self.method.sampler.global_batch},
            **self.method.info.to_dict(),
        }
        if self.best:
            state["best"] = self.best.state()
        if kept := self.method.state():
            state["method"] = kept
        self.checkpoints.save(self.done, self.model, self.optimizer, state)
        self.saved = self.done

    @contextmanager
    def _rescued(self) -> Iterator[None]:
        """Save the progress before an error of the data in the block is raised.

        Under torchrun the other ranks then wait within a step. The main rank, which holds the whole model unless it is
        sharded, saves alone: after an error of its own data, and when gloo reports that another rank has ended.
        """
        try:
            yield
        except (LoaderError, RuntimeError) as error:
            ended = isinstance(error, LoaderError) or (self.ranks.hosts and not ran_out(error))
            if ended and self.ranks.main and not self.sharded and self.done > self.saved:
                self._save_alone(error)
            raise

    def _save_alone(self, ended: Exception) -> None:
        """Save without the other ranks; an error is logged, not raised."""
        self.meter.newest = lambda: self.saved  # other ranks do not answer
        try:
            for note in self.meter.read():
                self.log.say(note)
            check_weights(self.model, self.done, self.meter.newest, ALONE)
            self._save(together=False)
            self.checkpoints.finish()
            self.log.say(f"{type(ended).__name__}: saved after step {self.done}; continue with --resume")
        except (ValueError, OSError, RuntimeError) as error:
            self.log.say(f"step {self.done} could not be saved: {error}")

    def _end(self) -> Outcome:
        """Finish the run after the last step."""
        options, log = self.options, self.log
        self.checkpoints.finish()
        if times := self.ranks.sum(self.meter.replaced):
            log.say(_replaced(times, self.replaced))
        if self.best:
            if self.best.enough():
                log.say(f"stopped early: no better score in the last {counted(self.best.since, 'validation')}")
            log.say(f"best weights: step {self.best.step}, in {options.out / 'best'}")
            if self.best.score < NEAR_ZERO and (warning := self.method.validation.warning_at_zero):
                log.say(f"warning: {warning}")
        if skipped := self.meter.skipped_at_end(self.done):
            log.say(ended_skipping(skipped, self.done))
        model, weights = self.model, whole_weights(self.model) if self.sharded else {}  # gathered by all ranks
        if not self.ranks.main:
            return Outcome(options.out, self.done, skipped=skipped)
        if self.sharded:  # a checkpoint of the whole model, for other commands
            model = self.method.build().to(self.place.device)
            load_cinema_weights(model, weights)
            state = {"meter": self.meter.state(), **self.method.info.to_dict()}
            save_checkpoint(options.out / "checkpoints", self.done, weights, state, keep=options.keep_checkpoints)
        return Outcome(options.out, self.done, evaluation=self.method.finish(model, log), skipped=skipped)


def _replaced(times: int, seen: Counter[str]) -> str:
    """In words, how often an unreadable study was replaced in training, and which of them this process has `seen`."""
    parts = [named([f"{study} ({_times(n)})" for study, n in seen.most_common()])] * bool(seen)
    rest = times - seen.total()
    parts += [f"{_times(rest)} on other ranks or before the run was resumed"] * bool(rest)
    return (f"unreadable studies were replaced {_times(times)} in training: {'; '.join(parts)}. The lines of these "
            "steps above say why; `cinema-fast verify STORE` checks the whole store")


def _times(n: int) -> str:
    return "once" if n == 1 else f"{n} times"
