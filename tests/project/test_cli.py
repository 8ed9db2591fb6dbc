"""The command line: what it prints, its exit statuses, and its answers to mistakes, with never a traceback."""

import nibabel as nib
import pytest
import tiny_runs
import yaml
from command_line import called
from forked import run
from tiny_runs import write_store

from cinema_fast import presets


def test_info(capfd):
    status, out, _ = called(capfd, "info")
    assert status == 0
    for word in ("torch", "python", "device", "triton", "xformers", *presets()):
        assert word in out


def test_print_config_is_yaml_and_touches_nothing(capfd, tmp_path):
    arguments = ("--data", tmp_path / "none", "--out", tmp_path / "run", "--steps", 7, "--lr", "2e-4", "--views", "sax")
    status, out, _ = called(capfd, "pretrain", *arguments, "--print-config")
    values = yaml.safe_load(out)
    assert status == 0 and not list(tmp_path.iterdir())
    assert (values["steps"], values["lr"], values["views"], values["batch_size"]) == (7, 2e-4, ["sax"], 64)


@pytest.mark.parametrize(
    ("change", "status", "expected"),
    [
        (("--preset", "cinema-bas"), 1, "did you mean 'cinema-base'"),
        (("--batchsize", "4"), 2, "--batch-size"),
        (("--learning-rate", "1e-3"), 2, "cinema-fast: the learning rate is --lr"),
        (("--learning-rate=1e-3",), 2, "cinema-fast: the learning rate is --lr"),
        (("--epochs", "3"), 2, "cinema-fast: the length of a run is given by --steps"),
        (("--batch-size", "four"), 2, "four"),
        (("--batch-size", "0"), 1, "--batch-size must be at least 1, got 0"),
        (("--lr", "inf"), 1, "--lr must be above 0 and finite, got inf"),
        (("--min-lr", "nan"), 1, "--min-lr must be finite and not negative, got nan"),
        (("--weight-decay", "inf"), 1, "--weight-decay must be finite and not negative, got inf"),
        (("--clip-grad", "inf"), 1, "--clip-grad must be above 0 and finite, got inf"),
        (("--warmup", "nan"), 1, "--warmup is a share of the steps, between 0 and 1, got nan"),
        (("--device", "gpu"), 2, "cuda"),
        (("--views", "sax", "lax_2"), 1, "did you mean 'lax_2c'"),
        (("--out", __file__), 1, "test_cli.py is a file; expected a folder"),
        (("--init-from", "nothing.safetensors"), 1, "nothing.safetensors"),
        (("--init-from", __file__), 1, "test_cli.py cannot be read as weights: not a torch file, or damaged"),
    ],
)
def test_mistakes_in_options(capfd, tiny_store, tmp_path, monkeypatch, change, status, expected):
    monkeypatch.setenv("COLUMNS", "200")
    arguments = ("--data", tiny_store, "--out", tmp_path / "run", "--steps", 1, "--preset", "cinema-tiny")
    found, _, err = called(capfd, "pretrain", *arguments, *change)
    assert found == status and expected in err
    assert not (tmp_path / "run").exists()
    if status == 1:
        assert err.startswith("cinema-fast: ") and err.count("\n") == 1


def test_the_demonstration_refuses_its_options_before_the_work(capfd, tmp_path):
    for option, told in (("--studies", "at least 2, got 0"), ("--steps", "at least 1, got 0")):
        status, _, err = called(capfd, "demo", "--out", tmp_path / "demo", option, 0)
        assert status == 1 and f"{option} must be {told}" in err and not (tmp_path / "demo").exists()


def test_the_demonstration_writes_into_no_file(capfd):
    status, _, err = called(capfd, "demo", "--out", __file__)
    assert status == 1 and err == f"cinema-fast: {__file__} is a file or not empty: choose another --out\n"


def test_mistakes_in_the_store(capfd, tiny_store, tmp_path):
    store = write_store(tmp_path / "store", {"a": ("sax",), "b": ("sax",)})
    index = (store / "index.json").read_text()

    def attempt() -> str:
        arguments = ("--data", store, "--out", tmp_path / "run", "--steps", 1, "--preset", "cinema-tiny")
        status, _, err = called(capfd, "pretrain", *arguments)
        assert status == 1 and err.startswith("cinema-fast: ") and not (tmp_path / "run").exists()
        return err

    (store / "index.json").write_text(index.replace('"version": 3', '"version": 7'))
    assert "7" in attempt()
    (store / "index.json").write_text(index)
    (store / "studies" / "b" / "sax.npy").rename(tmp_path / "sax.npy")
    assert "b/sax.npy" in attempt()
    (store / "studies" / "b" / "sax.npy").write_bytes(b"other")
    assert "b/sax.npy" in attempt()
    (store / "index.json").unlink()
    assert "not a cine store" in attempt()


def test_a_view_that_the_preset_lacks(capfd, tmp_path, monkeypatch):
    monkeypatch.setitem(tiny_runs.SIZES, "rvot", (32, 32))
    store = write_store(tmp_path / "store", {"a": ("sax", "rvot"), "b": ("sax",)})
    arguments = ("--data", store, "--out", tmp_path / "run", "--steps", 1, "--preset", "cinema-tiny", "--batch-size", 1)
    status, _, err = called(capfd, "pretrain", *arguments)
    assert status == 1 and "'rvot'" in err and "--views sax" in err
    assert called(capfd, "pretrain", *arguments, "--views", "sax")[0] == 0


def test_unknown_command(capfd):
    for wrong in ("pretrian", "pretran"):
        status, out, err = called(capfd, wrong, "--data", "store")
        assert status == 2 and out == ""
        assert err.startswith(f"cinema-fast: no command '{wrong}'; did you mean pretrain? (commands: info, phantom, ")
        assert err.count("\n") == 1 and "--data" not in err
    assert "did you mean" not in called(capfd, "xyzzy")[2]
    assert called(capfd, "prepare")[0] == 2


def test_prepare_check_without_sources_points_to_verify(capfd, tiny_store):
    status, _, err = called(capfd, "prepare", "--check", tiny_store)
    assert status == 2 and err.endswith("cinema-fast verify STORE\n")
    assert "verify" not in called(capfd, "prepare", tiny_store)[2]
    status, out, _ = called(capfd, "prepare", "--help")
    assert status == 0 and "verify STORE" in " ".join(out.replace("│", " ").split())


def test_installed_command_and_its_status(tmp_path):
    """Through a process of its own: help is 0, a mistake is one line and 1."""
    assert run("--help").returncode == 0
    ended = run("pretrain", "--data", tmp_path, "--out", tmp_path / "run", "--steps", "1")
    assert ended.returncode == 1 and ended.stdout == ""
    assert ended.stderr.startswith("cinema-fast: ") and "cinema-fast prepare" in ended.stderr


def test_phantom_prepare_pretrain(capfd, tmp_path):
    """The three commands one after the other, on two synthetic studies at a small size."""
    shape = ("--n-frames", 5, "--n-slices", 4, "--in-plane-mm", 4.5)
    status, out, err = called(capfd, "phantom", tmp_path / "cohort", "--n", 2, *shape)
    assert status == 0 and err.startswith("making studies: 0 of 2, 0:00\n")
    assert nib.load(tmp_path / "cohort" / "heart-000001_sax.nii.gz").shape == (64, 64, 4, 5)
    assert out.startswith(f"{tmp_path / 'cohort'}: 2 studies, heart-000000 to heart-000001;")
    sizes = ("--sax-size", 32, 32, 2, "--lax-size", 32, 32, "--sax-spacing", 6, 6, 40, "--lax-spacing", 6, 6)
    status, out, err = called(capfd, "prepare", tmp_path / "cohort", tmp_path / "store", *sizes)
    assert status == 0, out + err
    arguments = ("--data", tmp_path / "store", "--out", tmp_path / "run", "--steps", 2, "--preset", "cinema-tiny")
    assert called(capfd, "pretrain", *arguments, "--batch-size", 2)[0] == 0
    assert (tmp_path / "run" / "report" / "reconstruction.png").exists()
