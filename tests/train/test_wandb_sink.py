"""What Weights & Biases is given: in one run, no step twice and none left out, online or offline."""

import json
import types

import pytest
from sink_lines import INFO, LINES

from cinema_fast.train import sinks as module


def numbers(line: dict) -> dict:
    return {key: value for key, value in line.items() if key != "step" and isinstance(value, int | float)}


def test_wandb_goes_on_in_its_run_and_gets_no_step_twice(tmp_path, write, stand_in, said):
    wandb = stand_in()
    write("wandb", LINES[:3], end="failed")
    write("wandb", LINES[2:], LINES[:2])
    assert wandb.points == [(line["step"], numbers(line)) for line in LINES]
    first, second = (named for what, named in wandb.calls if what == "init")
    assert first["id"] == second["id"] and first["resume"] == "allow"
    assert first["config"] == INFO.to_dict() and first["dir"] == str(tmp_path) and first["mode"] == "offline"
    assert (first["project"], first["name"]) == ("cinema-fast", tmp_path.name)
    assert [named for what, named in wandb.calls if what == "finish"] == [{"exit_code": 1}, {"exit_code": 0}]
    assert len(said) == 2 and "offline: no key" in said[0]
    assert json.loads((tmp_path / "wandb.json").read_text()) == {"id": first["id"], "step": 8}


@pytest.mark.parametrize(("seconds", "sure"), [(6, 0), (8, 2), (30, 6)])
def test_wandb_offline_gets_again_what_a_kill_may_have_taken(tmp_path, write, stand_in, seconds, sure):
    """Of lines at 8, 16, 24 and 32 s a kill at 32 s may have taken all but the first."""
    wandb = stand_in()
    write("wandb", LINES, end="killed", seconds=seconds)
    assert json.loads((tmp_path / "wandb.json").read_text())["step"] == sure
    wandb.points.clear()
    write("wandb", LINES[2:], LINES[:2])
    assert [step for step, _ in wandb.points] == [step for step in (2, 4, 6, 8) if step > sure]


def test_wandb_online_gets_what_its_server_lacks(write, stand_in, monkeypatch):
    wandb = stand_in(key=True, starting_step=4)  # it has steps up to 3
    monkeypatch.setattr(module.urllib.request, "urlopen", lambda *_, **__: types.SimpleNamespace(close=lambda: None))
    write("wandb", LINES[2:], LINES[:2])
    assert [step for step, _ in wandb.points] == [4, 6, 8]


@pytest.mark.parametrize(
    ("environment", "mode", "project", "expected"),
    [
        ({}, "offline", "cinema-fast", "offline: cannot reach http://127.0.0.1:9 ("),
        ({"WANDB_MODE": "disabled", "WANDB_PROJECT": "hearts"}, None, "hearts", "(WANDB_MODE disabled)"),
    ],
)
def test_wandb_without_a_network_or_by_its_environment(
    write, stand_in, said, monkeypatch, environment, mode, project, expected
):
    wandb = stand_in(key=True)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    write("wandb", LINES[:1])
    asked = wandb.calls[0][1]
    assert (asked["mode"], asked["project"]) == (mode, project) and expected in said[0]


@pytest.mark.parametrize("refused", [False, True])
def test_wandb_is_online_where_its_server_answers(write, stand_in, monkeypatch, refused):
    def answer(url, timeout):
        assert timeout <= 10
        if refused:
            raise module.urllib.error.HTTPError(url, 403, "no", {}, None)
        return types.SimpleNamespace(close=lambda: None)

    wandb = stand_in(key=True)
    monkeypatch.setattr(module.urllib.request, "urlopen", answer)
    write("wandb", LINES[:1])
    assert wandb.calls[0][1]["mode"] == "online"


def test_the_real_wandb_without_a_key(tmp_path, write, said, no_wandb_settings):
    """Both processes of a run that was stopped are on disk, under one id, without a question or a wait."""
    pytest.importorskip("wandb", reason="the extra wandb is not installed")
    write("wandb", LINES[:3])
    write("wandb", LINES[2:], LINES[:2])
    assert len(said) == 2 and all("offline: no key" in text for text in said)
    state = json.loads((tmp_path / "wandb.json").read_text())
    assert state["step"] == 8
    files = (tmp_path / "wandb").glob(f"offline-run-*/run-{state['id']}.wandb")
    written = b"".join(file.read_bytes() for file in files)
    assert all(json.dumps(line["loss"]).encode() in written for line in LINES)
