"""From real scanner files to a trained model by the command line, where they lie beside the checkout."""

import pytest
from marks import slow
from real_studies import PREPARE
from tiny_runs import metrics

from cinema_fast.cli import main

SMALL = "--sax-size 48 48 6 --lax-size 64 64 --sax-spacing 3 3 20 --lax-spacing 3 3 --workers 1"


@pytest.mark.parametrize("name", [slow("cine"), "cmr"])
def test_a_store_of_real_files_trains(shared, tmp_path, name):
    store, out = str(tmp_path / "store"), tmp_path / "run"
    assert main(["prepare", str(shared / "data" / name), store, *PREPARE[name], *SMALL.split()]) == 0
    options = "--preset cinema-demo --steps 40 --batch-size 2 --log-every 8 --device cpu --warmup 0.1"
    assert main(["pretrain", "--data", store, "--out", str(out), *options.split()]) == 0
    losses = [line["loss"] for line in metrics(out)]
    assert losses[-1] < 0.5 * losses[0]
    assert (out / "report" / "reconstruction.png").exists()
