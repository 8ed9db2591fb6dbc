"""how-to/scaling.md: its tables are those of benchmarks/step/scaling.py, which is held to what is really sent and
kept; its examples can be parsed, and the Slurm script saves and comes back at the end of its time."""

import os
import shlex
import signal
import subprocess
import time

import pytest
import scaling
import torch
import torch.distributed as dist
import yaml
from checkout import ROOT
from torch.distributed.run import get_args_parser
from torch.utils._python_dispatch import TorchDispatchMode

import cinema_fast as cf
from cinema_fast.cli import main
from cinema_fast.kernels import attention_peers
from cinema_fast.train.ranks import Ranks, shard_model

EXAMPLES = ROOT / "docs" / "examples"
RANKS = 4


def test_the_document_holds_the_tables_of_today():
    text = scaling.DOCUMENT.read_text()
    assert text == scaling.with_tables(text), "run: python benchmarks/step/scaling.py --write"


@pytest.fixture
def pretended_ranks():
    """A process group of four in which nothing is sent, and this process is the first."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=0, world_size=RANKS, store=FakeStore())
    yield
    dist.destroy_process_group()


class Collectives(TorchDispatchMode):
    """Counts what is gathered, or reduced and scattered: bytes of the whole, and calls."""

    def __init__(self):
        super().__init__()
        self.bytes = self.calls = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace in ("c10d", "_c10d_functional"):
            tensors = [t for t in torch.utils._pytree.tree_leaves(args) if isinstance(t, torch.Tensor)]
            self.bytes += max(t.nbytes for t in tensors)
            self.calls += 1
        return function(*args, **(kwargs or {}))


def loss_of(model, config, decode=None, batch=1):
    images = {v: torch.rand(batch, config.in_chans[v], *config.image_size[v]) for v in config.views}
    plan = {}
    for view in config.views:
        n = config.n_tokens(view)
        plan[view] = cf.sample_mask(batch=batch, n=n, keep=n // 4, decode=decode and decode[view], seed=0)
    return model(images, plan).loss


def test_what_fsdp_sends(pretended_ranks):
    config = cf.preset("cinema-demo")
    model = cf.CineMA(config)
    units = (*model.encoder.blocks, model.decoder)
    shard_model(model, units, Ranks(world=RANKS), torch.device("cpu"))
    with Collectives() as counted:
        loss_of(model, config).backward()
    expected = scaling.fsdp_traffic("cinema-demo", RANKS)
    assert expected == (counted.bytes * (RANKS - 1) / RANKS, counted.calls)


def test_what_ddp_sums(pretended_ranks):
    config, summed = cf.preset("cinema-demo"), []

    def note(_, bucket):
        summed.append(bucket.buffer().nbytes)
        done = torch.futures.Future()
        done.set_result(bucket.buffer())
        return done

    model = torch.nn.parallel.DistributedDataParallel(cf.CineMA(config))
    model.register_comm_hook(None, note)
    loss_of(model, config).backward()
    assert scaling.ddp_traffic("cinema-demo", RANKS).bytes == 2 * (RANKS - 1) / RANKS * sum(summed)


def kept_bytes(config, decode_ratio, batch):
    """What a forward pass in bf16 keeps for backward, but for parameters."""
    model, storages = cf.CineMA(config), {}
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage.nbytes(), tensor  # the tensor, so that its place stays its own
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with torch.autocast("cpu", dtype=torch.bfloat16), hooks:
        loss_of(model, config, scaling.counts(config, decode_ratio)[1], batch)
    return sum(size for size, _ in storages.values())


@pytest.mark.parametrize("decode_ratio", scaling.DECODED)
def test_what_blocks_keep_for_backward(decode_ratio, monkeypatch):
    monkeypatch.setattr(attention_peers, "BF16_WITHOUT_TILES", False)  # there a CPU keeps more than a GPU
    size, patch, grid = (dict.fromkeys(["clip"], v) for v in ((8, 64, 64), (2, 8, 8), (1, 1, 1)))
    found, expected = [], []
    for depth in (2, 4):
        config = cf.CineMAConfig(
            views=("clip",), image_size=size, in_chans={"clip": 1}, patch_size=patch, scale_factor=grid,
            enc_conv_chans=(), enc_embed_dim=128, enc_depth=depth, enc_n_heads=2, dec_embed_dim=192, dec_depth=depth,
            dec_n_heads=2,
        )  # fmt: skip
        # what does not grow with the batch is no activation, as the weights in bf16
        found.append(kept_bytes(config, decode_ratio, 2) - kept_bytes(config, decode_ratio, 1))
        expected.append(scaling.activation_bytes(config, decode_ratio))
    assert found[1] - found[0] == pytest.approx(expected[1] - expected[0], rel=0.05)


def test_a_step_lies_between_its_bounds():
    assert scaling.Step(3.0, 1.0)[:] == (3.0, 1.0)
    for communication, hidden in ((1.0, 3.0), (2.0, 3.0), (5.0, 6.0)):
        step = scaling.Step(3.0, communication)
        assert (step.hidden, step.apart) == (hidden, 3.0 + communication)
    # 56 million studies at 646 a second are the day that the project aims at
    assert scaling.hours(64 / 646, 64) == pytest.approx(56e6 / 646 / 3600)


def parsed(words: list[str], capsys) -> tuple:
    """(torchrun's options, the run's) of a command line from torchrun on; each name and value is checked."""
    launcher = get_args_parser().parse_args(words[1:])
    assert launcher.training_script == "cinema_fast" and launcher.module
    assert main([*launcher.training_script_args, "--print-config"]) == 0
    return launcher, yaml.safe_load(capsys.readouterr().out)


def test_commands_of_the_document(capsys):
    blocks = scaling.DOCUMENT.read_text().split("```")[1::2]
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if "torchrun" in line]
    assert len(lines) >= 3
    for line in lines:
        words = [word.replace("$NODE", "0") for word in shlex.split(line, comments=True)]
        parsed(words[words.index("torchrun") :], capsys)


def test_the_job_of_kubernetes(capsys):
    job = yaml.safe_load((EXAMPLES / "pytorchjob.yaml").read_text())["spec"]
    worker = job["pytorchReplicaSpecs"]["Worker"]
    pod = worker["template"]["spec"]
    (container,) = pod["containers"]
    launcher, run = parsed(container["command"], capsys)
    assert int(launcher.nproc_per_node) == container["resources"]["limits"]["nvidia.com/gpu"]
    assert job["elasticPolicy"]["minReplicas"] == job["elasticPolicy"]["maxReplicas"] == worker["replicas"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    per_step = run["batch_size"] * int(launcher.nproc_per_node) * worker["replicas"]
    assert per_step * run["steps"] == scaling.EPOCHS * scaling.STUDIES


FAKES = {
    "srun": 'shift; exec "$@"',  # its own option first
    "torchrun": """printf '%s\\n' torchrun "$@" > words; trap 'echo saved >> events; exit 1' TERM
        echo $$ > pid.new; mv pid.new pid; until [ -e done ]; do sleep 0.02; done""",
    "scancel": 'echo "scancel $*" >> events; kill -TERM "$(cat pid)"',
    "scontrol": '[ "$1" = show ] && echo machine-1 || echo "scontrol $*" >> events',
}


@pytest.fixture
def slurm_job(tmp_path):
    """The script under way, among commands that stand for Slurm's and for torchrun."""
    for name, script in FAKES.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{script}\n")
        (tmp_path / name).chmod(0o755)
    there = {"SLURM_JOB_ID": "7", "SLURM_NNODES": "4", "SLURM_GPUS_ON_NODE": "8", "SLURM_JOB_NODELIST": "machine-[1-4]"}
    environment = os.environ | there | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    job = subprocess.Popen(["bash", EXAMPLES / "pretrain.slurm"], cwd=tmp_path, env=environment)
    while not (tmp_path / "pid").exists():
        assert job.poll() is None
        time.sleep(0.02)
    yield job
    if job.poll() is None:
        (tmp_path / "done").touch()
        job.wait(timeout=20)


@pytest.mark.parametrize("name", [signal.SIGUSR1, signal.SIGTERM, None], ids=["time is up", "cancelled", "done"])
def test_the_job_of_slurm(slurm_job, tmp_path, capsys, name):
    launcher, run = parsed((tmp_path / "words").read_text().splitlines(), capsys)
    assert (launcher.nnodes, launcher.rdzv_endpoint) == ("4", "machine-1:20007")
    assert run["batch_size"] * 4 * 8 * run["steps"] == scaling.EPOCHS * scaling.STUDIES
    if name is None:
        (tmp_path / "done").touch()
    else:
        slurm_job.send_signal(name)
    if name == signal.SIGTERM:  # Slurm tells the tasks itself
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGTERM)
    assert slurm_job.wait(timeout=20) == (0 if name is None else 1)
    events = tmp_path / "events"
    assert (events.read_text().splitlines() if events.exists() else []) == {
        signal.SIGUSR1: ["scancel --signal=TERM 7", "saved", "scontrol requeue 7"],
        signal.SIGTERM: ["saved"],
        None: [],
    }[name]
