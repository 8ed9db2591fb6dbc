"""Old names of options: on the command line they work and warn, of older runs they are read."""

import pytest
import yaml
from command_line import called

from cinema_fast.common.renamed import RENAMED, current_options

RUN = ("--data", "store", "--out", "run", "--steps", "1", "--print-config")
FINETUNE = (*RUN, "--task", "multitask", "--table", "t.csv", "--targets", "a", "b")
FIXED = (*FINETUNE, "--balance", "fixed")
# {(command, old name): (arguments before it, its values, what the command then prints)}
CASES = {
    ("prepare", "check"): (("nowhere", "store"), (), "nowhere"),
    ("pretrain", "clip"): (RUN, ("0.5",), {"clip_grad": 0.5}),
    ("pretrain", "keep"): (RUN, ("7",), {"keep_checkpoints": 7}),
    ("finetune", "clip"): (FINETUNE, ("0.5",), {"clip_grad": 0.5}),
    ("finetune", "keep"): (FINETUNE, ("7",), {"keep_checkpoints": 7}),
    ("finetune", "blank"): (FINETUNE, ("0.3",), {"cutout": 0.3}),
    ("finetune", "frozen"): ((*FINETUNE, "--init-from", "weights.pt"), (), {"freeze": True}),
    ("finetune", "weights"): (FIXED, ("1", "2"), {"loss_weights": [1.0, 2.0]}),
    ("evaluate", "about"): (("nowhere", "out"), ("about.csv",), "nowhere holds no run"),
    ("cluster", "most"): (("nowhere", "--out", "out"), ("1",), "--max-clusters must be at least 2, got 1"),
}


@pytest.mark.parametrize(("command", "old"), [(command, old) for command, names in RENAMED.items() for old in names])
def test_an_old_name_works_and_warns(capfd, tmp_path, monkeypatch, command, old):
    monkeypatch.chdir(tmp_path)
    before, values, expected = CASES[command, old]
    new = RENAMED[command][old].replace("_", "-")
    found = {name: called(capfd, command, *before, f"--{name}", *values) for name in (old, new)}
    status, out, err = found[old]
    warning = f"cinema-fast: --{old} is now --{new}; the old name works until version 0.2\n"
    assert err.startswith(warning) and found[new] == (status, out, err.removeprefix(warning))
    if isinstance(expected, str):
        assert status == 1 and expected in err
    else:
        assert status == 0 and yaml.safe_load(out).items() >= expected.items()
    if len(values) == 1:
        assert called(capfd, command, *before, f"--{old}={values[0]}") == found[old]


def test_other_commands_have_their_own_options(capfd):
    status, _, err = called(capfd, "predict", "run", "src", "out", "--clip", "3")
    assert status == 2 and "is now" not in err


def test_options_of_older_runs():
    options = {"steps": 4, "clip": 5.0, "keep": 2, "weights": [1.0]}
    now = {"steps": 4, "clip_grad": 5.0, "keep_checkpoints": 2}
    assert current_options("pretrain", options) == now | {"weights": [1.0]}
    renamed = current_options("finetune", options)
    assert renamed == now | {"loss_weights": [1.0]}
    assert current_options("finetune", renamed) == renamed
