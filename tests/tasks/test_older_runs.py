"""A run that was stopped and saved by the version before runs had a format goes on bit for bit."""

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny_runs import metrics

from cinema_fast.common.renamed import RENAMED
from cinema_fast.methods.pretrain import pretrain
from cinema_fast.methods.pretrain_config import PretrainConfig
from cinema_fast.tasks.finetune import finetune
from cinema_fast.train.checkpoint import save_checkpoint


def as_it_was(out, step: int) -> None:
    """Write config.yaml and the checkpoint of a step as that version did."""
    config = yaml.safe_load((out / "config.yaml").read_text())
    kind = config.pop("kind")
    tuned, old_names = kind == "finetune", {new: old for old, new in RENAMED[kind].items()}
    del config["format"]
    config["run"] = {old_names.get(name, name): value for name, value in config["run"].items()}
    assert set(RENAMED[kind]) <= config["run"].keys()
    (out / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    path = out / "checkpoints" / f"step-{step:08d}"
    state = torch.load(path.with_suffix(".pt"), weights_only=True)
    del state["format"], state["kind"]
    state["run"] = config["run"]
    if tuned:
        del state["sampler"], state["best"]["at"]
    for group in state["optimizer"]["param_groups"]:
        group["lr"] = float(group["lr"])
        if not tuned:
            del group["lr_scale"]
    save_checkpoint(path.parent, step, load_file(path.with_suffix(".safetensors")), state, keep=1)


@pytest.mark.parametrize("kind", ["pretrain", "finetune"])
def test_it_goes_on(discs, tmp_path, stop_after, kind):
    def run(out, **options) -> int:
        if kind == "finetune":
            config = discs.config(out, "regression", steps=6, validate_every=2, batch_size=2, log_every=1, **options)
            return finetune(config).exit_code
        common = {"steps": 6, "preset": "cinema-demo", "batch_size": 2, "log_every": 1, "device": "cpu"}
        return pretrain(PretrainConfig(data=discs.store, out=out, **common, **options)).exit_code

    assert run(tmp_path / "whole") == 0
    stop_after(3)
    assert run(tmp_path / "parts") == 143
    as_it_was(tmp_path / "parts", 3)
    stop_after(None)
    assert run(tmp_path / "parts", resume=True) == 0
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")
    ends = [tmp_path / name / "checkpoints" / "step-00000006.safetensors" for name in ("whole", "parts")]
    assert ends[0].read_bytes() == ends[1].read_bytes()
