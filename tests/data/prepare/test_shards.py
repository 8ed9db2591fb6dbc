"""A store prepared in parts: every study once, nobody in another's way, one index at the end."""

import fcntl
import json
import os
import subprocess
import sys

import pytest
from cine_files import write_study
from prepared import SIZES, content, run, wait_for

from cinema_fast.cli import main
from cinema_fast.data.prepare.prepare import PrepareConfig
from cinema_fast.data.prepare.shard import Shard, parse_shard
from cinema_fast.data.store.store import CineStore, StoreError

# Each shard writes two studies and waits for the file sys.argv[4], so that it is still at work when others are refused.
SCRIPT = """
import sys, time
from pathlib import Path
from cinema_fast.data.prepare import prepare as preparing
from cinema_fast.data.prepare.prepare import PrepareConfig, prepare

replace_folder, written = preparing.replace_folder, []

def wait_after_two(*folders):
    while len(written) == 2 and not Path(sys.argv[4]).exists():
        time.sleep(0.01)
    replace_folder(*folders)
    written.append(folders)

if __name__ == "__main__":
    preparing.replace_folder = wait_after_two
    options = dict(sax_size=(32, 32, 6), lax_size=(40, 40), workers=1, shard=sys.argv[3])
    print(prepare(PrepareConfig(Path(sys.argv[1]), Path(sys.argv[2]), **options), progress=False))
"""


@pytest.fixture
def src(tmp_path):
    for n in range(6):
        write_study(tmp_path / "src", f"p{n}", seed=n)
    return tmp_path / "src"


def without_shards(store) -> dict[str, str]:
    return {name: digest for name, digest in content(store).items() if not name.startswith(".shards")}


@pytest.mark.parametrize("motion", [False, True])
def test_parts_and_merge_give_what_one_run_gives(src, tmp_path, motion):
    (src / "p3_sax.nii.gz").write_bytes(b"")
    run(src, tmp_path / "whole", motion=motion)
    store = tmp_path / "parts"
    reports = [run(src, store, shard=f"{k}/3", motion=motion) for k in (2, 3, 1)]
    assert sum(report.prepared for report in reports) == 6 and min(report.prepared for report in reports) > 0
    assert [report.exit_code for report in reports].count(1) == 1
    assert not (store / "index.json").exists() and "--merge" in str(reports[0])
    with pytest.raises(StoreError, match=r"is not a cine store .* --merge`"):
        CineStore(store)
    report = run(src, store, merge=True, motion=motion)
    assert (report.prepared, report.unchanged, report.n_studies, report.exit_code) == (0, 6, 6, 1)
    assert [(f.study, f.reason) for f in report.failures] == [("p3", "the file is empty")]
    assert without_shards(store) == without_shards(tmp_path / "whole")
    again = run(src, store)
    assert (again.unchanged, again.prepared) == (5, 1) and not (store / ".shards").exists()


def test_motion_maps_may_come_with_the_merge(src, tmp_path):
    run(src, tmp_path / "whole", motion=True)
    for k in (1, 2):
        run(src, tmp_path / "parts", shard=f"{k}/2")
    assert run(src, tmp_path / "parts", merge=True, motion=True).motion_maps == 18
    assert without_shards(tmp_path / "parts") == without_shards(tmp_path / "whole")


def test_what_is_missing_is_reported(src, tmp_path):
    store = tmp_path / "store"
    run(src, store, shard="1/3")
    run(src, store, shard="3/3")
    report = run(src, store, merge=True)
    missing = {f"p{n}" for n in range(6) if Shard(2, 3).holds(f"p{n}")}
    assert missing and report.n_studies == 6 - len(missing) and report.exit_code == 1
    reasons = {failure.study: failure.reason for failure in report.failures}
    assert reasons.pop("") == "has not finished" and "failed: shard 2/3: has not finished" in str(report)
    assert reasons == {study: f"the study {study} is missing: no shard has prepared it" for study in missing}
    run(src, store, shard="2/3")
    assert run(src, store, merge=True).failures == [] and CineStore(store).ids == [f"p{n}" for n in range(6)]


def test_merge_of_a_store_that_has_been_damaged(src, tmp_path):
    store = tmp_path / "store"
    for k in (1, 2):
        run(src, store, shard=f"{k}/2")
    (store / "studies/p1/sax.npy").write_bytes(b"")
    report = run(src, store, merge=True)
    assert report.n_studies == 5 and [failure.study for failure in report.failures] == ["p1"]
    shard = next(k for k in (1, 2) if Shard(k, 2).holds("p1"))
    assert run(src, store, shard=f"{shard}/2").prepared == 1
    (store / ".shards/1-of-2.preparing/0").mkdir(parents=True)  # of a shard that was killed
    assert run(src, store, merge=True).failures == []
    assert sorted(path.name for path in (store / ".shards").iterdir()) == [
        f"{k}-of-2.{what}" for k in (1, 2) for what in ("failures.jsonl", "lock")]


def test_altered_maps_are_reported_by_a_merge_that_repairs(src, tmp_path):
    store = tmp_path / "store"
    run(src, store, shard="1/1", motion=True)
    path = store / "studies/p1/sax.motion.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"\x9c")
    (failure,) = run(src, store, merge=True, repair=True).failures
    assert failure.file == "studies/p1/sax.motion.npy" and "altered" in failure.reason


def test_a_shard_without_studies_has_done_its_work(src, tmp_path):
    empty = next(k for k in range(1, 50) if not any(Shard(k, 49).holds(f"p{n}") for n in range(6)))
    report = run(src, tmp_path / "store", shard=f"{empty}/49")
    assert (report.exit_code, report.n_studies) == (0, 0)


@pytest.fixture
def start(tmp_path):
    """Starts a shard in a process of its own, which does not outlive the test."""
    (tmp_path / "script.py").write_text(SCRIPT)
    started = []

    def start(src, dst, shard, go):
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, tmp_path / "script.py", src, dst, shard, go]
        started.append(subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_shards_run_at_once_and_refuse_whom_they_must(tmp_path, start):
    for n in range(20):
        write_study(tmp_path / "src", f"p{n:02}", seed=n)
    src, store, go = tmp_path / "src", tmp_path / "store", tmp_path / "go"
    shards = [start(src, store, f"{k}/2", go) for k in (1, 2)]
    wait_for(lambda: len(list((store / "studies").glob("*"))) == 4)
    with pytest.raises(StoreError, match=f"prepared as shard 1/2 by another process .pid {shards[0].pid} on "):
        run(src, store, shard="1/2")
    with pytest.raises(StoreError, match=r"by the shard [12]/2, this one is 1/4: all must divide"):
        run(src, store, shard="1/4")
    for options in ({}, {"merge": True}):
        with pytest.raises(StoreError, match=r"is being prepared by the shards [12]/2"):
            run(src, store, **options)
    shards[1].kill()
    shards[1].wait()  # its lock goes with it, its studies stay whole
    assert run(src, store, shard="2/2").exit_code == 0
    go.touch()
    assert shards[0].wait(60) == 0, shards[0].communicate()
    report = run(src, store, merge=True)
    assert report.failures == [] and len(CineStore(store).ids) == 20
    assert sorted(path.name for path in (store / ".shards").iterdir()) == [
        f"{k}-of-2.{what}" for k in (1, 2) for what in ("failures.jsonl", "lock")]


def test_a_plain_run_keeps_shards_out(src, tmp_path):
    (tmp_path / "store").mkdir()
    with (tmp_path / "store/.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write("77 on node1\n")
        file.flush()
        with pytest.raises(StoreError, match=r"is being prepared by another process .pid 77 on node1"):
            run(src, tmp_path / "store", shard="1/2")
    assert run(src, tmp_path / "store", shard="1/2").prepared > 0


def test_another_division_later_forgets_the_first(src, tmp_path):
    run(src, tmp_path / "store", shard="1/2")
    for k in (1, 2, 3):
        run(src, tmp_path / "store", shard=f"{k}/3")
    assert run(src, tmp_path / "store", merge=True).failures == []


def test_other_options_are_refused(src, tmp_path):
    run(src, tmp_path / "store", shard="1/2")
    with pytest.raises(StoreError, match=r"were prepared with lax_size=\[40, 40\] \(now \[48, 48\]\)"):
        run(src, tmp_path / "store", shard="1/2", lax_size=(48, 48))
    run(src, tmp_path / "store", shard="2/2", lax_size=(48, 48))
    with pytest.raises(StoreError, match=r"its index is lost, and \d of its 6 studies were prepared with lax_size"):
        run(src, tmp_path / "store", merge=True)
    (tmp_path / "home").mkdir()
    (tmp_path / "home/thesis.tex").touch()
    with pytest.raises(StoreError, match=r"not empty and is not a cine store \(it holds 'thesis.tex'\)"):
        run(src, tmp_path / "home", shard="1/2")


@pytest.mark.parametrize(("options", "message"), [
    ({"shard": "0/2"}, "shard is '0/2', expected k/n"), ({"shard": "3/2"}, "expected k/n"),
    ({"shard": "1"}, "expected k/n"), ({"shard": "1/2", "merge": True}, "leave out --shard"),
    ({"shard": "1/2", "overwrite": True}, "--overwrite would remove"),
    ({"merge": True, "overwrite": True}, "--overwrite would remove"),
])  # fmt: skip
def test_options_that_do_not_go_together(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        PrepareConfig(tmp_path, tmp_path / "x", **options)


def test_every_study_is_of_one_shard():
    names = [f"study {n} é" for n in range(1000)]
    counts = [sum(Shard(k, 7).holds(name) for name in names) for k in range(1, 8)]
    assert sum(counts) == 1000 and min(counts) > 100
    assert parse_shard("3/16") == (3, 16) and str(Shard(3, 16)) == "3/16"


def test_on_the_command_line(src, tmp_path, capfd):
    sizes = [str(a) for a in ("--sax-size", *SIZES["sax_size"], "--lax-size", *SIZES["lax_size"], "--workers", 1)]
    for last in (["--shard", "1/1"], ["--merge"]):
        assert main(["prepare", str(src), str(tmp_path / "store"), *sizes, *last]) == 0
    assert "0 studies prepared, 6 unchanged" in capfd.readouterr().out
    assert json.loads((tmp_path / "store/index.json").read_text())["studies"].keys() == {f"p{n}" for n in range(6)}
