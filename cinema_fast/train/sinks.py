"""Writers of a run's numbers to TensorBoard and Weights & Biases; metrics.jsonl stays the record.

A sink never ends a run or delays it for long: after an error it is reported once and switched off. A resumed run first
gives it the lines of metrics.jsonl that it lacks, so that no step is missing or written twice.
"""

import json
import os
import secrets
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Literal, Protocol

from ..common.atomic import whole_file
from ..common.parsed_file import read_json
from .run_info import RunInfo

SinkName = Literal["tensorboard", "wandb"]

NETWORK_S = 5  # time to reach the server of Weights & Biases
INIT_S = 30  # time for that server to accept the run
FINISH_S = 10  # time to send the rest, within the time that a scheduler allows after SIGTERM
ON_DISK_S = 20  # an offline run of Weights & Biases writes every 15 s, and loses the rest when it is killed


class Sink(Protocol):
    """Receives the numbers of a run.

    has: it holds the lines up to this step from an earlier process.
    """

    has: int

    def write(self, step: int, values: dict[str, float]) -> None:
        """Write the numbers of a line of metrics.jsonl; steps ascend."""

    def close(self, failed: bool) -> None:
        """Called after the last line; failed: the run ended by an error."""


class TensorBoard:
    """Event files in OUT/tensorboard: a scalar per number, and config.yaml as a text.

    after: step of the last line that is kept. TensorBoard then hides later lines of an earlier process.
    """

    def __init__(self, out: Path, info: RunInfo, *, after: int, say: Callable[[str], None]):
        import yaml
        from torch.utils.tensorboard import SummaryWriter

        folder = out / "tensorboard"
        new = not any(folder.glob("events.out.tfevents.*"))
        self.has = 0 if new else after
        self._writer = SummaryWriter(str(folder), purge_step=None if new else after + 1)
        if new:
            text = yaml.safe_dump(info.to_dict(), sort_keys=False)
            self._writer.add_text("config", "\n".join(f"    {line}" for line in text.splitlines()), 0)
        say(f"TensorBoard: tensorboard --logdir {folder}")

    def write(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()  # so that a kill loses no line that metrics.jsonl has

    def close(self, failed: bool) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases, with files in OUT/wandb; offline without a key or a connection to the server.

    OUT/wandb.json holds its id, with which a resumed run continues it, and the last step that is certainly on disk.
    After a kill, an offline run may hold the lines of the last seconds twice. The environment variables of Weights &
    Biases (WANDB_MODE, WANDB_PROJECT, WANDB_ENTITY, ...) apply; the default project is cinema-fast. Neither run.log,
    which may name studies, nor code is sent.
    """

    def __init__(self, out: Path, info: RunInfo, *, after: int, say: Callable[[str], None]):
        import wandb

        self._path = out / "wandb.json"
        state = read_json(self._path) if self._path.exists() else {"id": secrets.token_hex(8), "step": 0}
        self._id, self._on_disk = state["id"], state["step"]
        self._unsure: deque[tuple[float, int]] = deque()  # (time, step) of later lines
        mode, why = _mode(wandb)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "cinema-fast"),
            name=os.environ.get("WANDB_NAME", out.absolute().name),
            dir=str(out),
            id=self._id,
            resume="allow",
            reinit="create_new",  # next to a run that the caller may have
            mode=mode,
            config=info.to_dict(),
            settings=wandb.Settings(
                console="off", disable_git=True, save_code=False, init_timeout=INIT_S, finish_timeout=FINISH_S
            ),
        )
        self.has = self._on_disk if self._run.offline else self._run.starting_step - 1
        self._keep(ON_DISK_S)
        say(f"Weights & Biases: run {self._id}{why}")

    def write(self, step: int, values: dict[str, float]) -> None:
        self._run.log(values, step=step)
        self._unsure.append((time.monotonic(), step))
        self._keep(ON_DISK_S)

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))
        self._keep(0)

    def _keep(self, seconds: float) -> None:
        """Treat steps that were written at least so many seconds ago as being on disk."""
        while self._unsure and time.monotonic() - self._unsure[0][0] >= seconds:
            _, self._on_disk = self._unsure.popleft()
        with whole_file(self._path) as file:
            file.write_text(json.dumps({"id": self._id, "step": self._on_disk}) + "\n")


def _mode(wandb) -> tuple[str | None, str]:
    """The mode, None where the environment gives it; and the reason, for the message."""
    if os.environ.get("WANDB_MODE", "online") != "online":
        return None, f" (WANDB_MODE {os.environ['WANDB_MODE']})"
    later = "send it with `wandb sync` later"
    if not wandb.login(prompt=False, verify=False):
        return "offline", f", offline: no key (`wandb login`); {later}"
    server = wandb.setup().settings.base_url
    try:
        urllib.request.urlopen(server, timeout=NETWORK_S).close()
    except urllib.error.HTTPError:
        pass  # the server answered, which suffices
    except OSError as error:
        return "offline", f", offline: cannot reach {server} ({error}); {later}"
    return "online", ""


_KINDS: dict[str, tuple[type[Sink], str, str]] = {  # the sink, a module it needs, and a name in it
    "tensorboard": (TensorBoard, "torch.utils.tensorboard", "SummaryWriter"),
    "wandb": (WeightsAndBiases, "wandb", "init"),  # a folder of that name also counts as a module
}


def check_sinks(names: Sequence[SinkName]) -> None:
    """Raise ValueError naming the library that is missing, or cannot be loaded."""
    for name in names:
        _, module, wanted = _KINDS[name]
        try:
            getattr(import_module(module), wanted)
        except Exception as error:
            raise ValueError(
                f"--sinks {name}: the extra {name} is not installed, or does not load ({_text(error)}): "
                f"pip install {name}"
            ) from error


class Sinks:
    """The sinks of a run; their errors never reach it.

    out: run folder. info: of the run. lines: of metrics.jsonl so far. say: prints a message.
    """

    def __init__(
        self, names: Sequence[SinkName], out: Path, info: RunInfo, *, lines: Sequence[dict], say: Callable[[str], None]
    ):
        self._say = say
        self._open: dict[str, Sink] = {}
        after = lines[-1]["step"] if lines else 0
        for name in dict.fromkeys(names):
            with self._survived(name):
                self._open[name] = _KINDS[name][0](out, info, after=after, say=say)
        for line in lines:
            self.write(line)

    def write(self, line: dict) -> None:
        """Every number of a line of metrics.jsonl; a loss that is not finite (None) is left out."""
        values = {key: value for key, value in line.items() if key != "step" and isinstance(value, int | float)}
        for name, sink in list(self._open.items()):
            if line["step"] > sink.has:
                with self._survived(name):
                    sink.write(line["step"], values)

    def close(self, *, failed: bool) -> None:
        for name, sink in list(self._open.items()):
            with self._survived(name):
                sink.close(failed)

    @contextmanager
    def _survived(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._open.pop(name, None)
            self._say(f"--sinks {name}: left out from here on ({_text(error)}); metrics.jsonl has every line")


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
