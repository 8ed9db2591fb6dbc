"""`--decode-ratio` below 1: another estimate of the same loss, without bias."""

import numpy as np
import pytest
import torch
from small_models import small_model
from tiny_runs import metrics

import cinema_fast as cf
from cinema_fast.data.loading.augment import model_input
from cinema_fast.data.loading.loader import read_batch
from cinema_fast.data.loading.sampler import Sampler
from cinema_fast.data.store.store import CineStore
from cinema_fast.methods.masking import draw_plan
from cinema_fast.methods.pretrain import pretrain
from cinema_fast.methods.pretrain_config import PretrainConfig
from cinema_fast.train.setup import fit_to_store

SEED, BATCH = 11, 4


def plans(config: cf.CineMAConfig, views, step: int, decode_ratio: float) -> dict:
    ids = torch.arange(BATCH)
    return draw_plan(config, views, ids, mask_ratio=0.75, seed=SEED, step=step, decode_ratio=decode_ratio)


def test_a_run_decodes_the_share_asked_for(tiny_store, tmp_path, no_report):
    config = PretrainConfig(
        data=tiny_store, out=tmp_path / "run", steps=1, preset="cinema-demo", batch_size=BATCH, seed=SEED, log_every=1,
        precision="fp32", device="cpu", decode_ratio=0.5,
    )  # fmt: skip
    pretrain(config)
    store = CineStore(tiny_store)
    model_config = fit_to_store(cf.preset(config.preset), store, config.views, config.preset)
    torch.manual_seed(SEED)
    model = cf.CineMA(model_config)
    draw = Sampler({s: store.views(s) for s in store.ids}, seed=SEED, batch_size=BATCH).draw(0)
    batch = read_batch(store, draw, model_config.image_size)
    images = {v: model_input(batch.frames[v], batch.extent[v], batch.augment[v]) for v in batch.frames}
    part, whole = (plans(model_config, draw.views, 0, ratio) for ratio in (0.5, 1.0))
    assert all(2 * part[view].masked.shape[1] == whole[view].masked.shape[1] for view in images)
    with torch.no_grad():
        assert metrics(config.out)[0]["loss"] == pytest.approx(float(model(images, part).loss), rel=1e-5)


def levels(config: cf.CineMAConfig, view: str) -> torch.Tensor:
    """(B, C, *size): every token of a grey of its own, so that the loss depends on which are decoded."""
    image = torch.rand(config.grid(view), generator=torch.Generator().manual_seed(1))
    for axis, n in enumerate(config.token_size(view)):
        image = image.repeat_interleave(n, axis)
    return image.expand(BATCH, config.in_chans[view], *image.shape)


@pytest.mark.slow
def test_the_mean_over_many_draws_is_the_loss_of_all_masked_tokens():
    """By Student's t over the draws. That a bias would be seen is seen from subsets by position, which have one."""
    model = small_model()
    images = {view: levels(model.config, view) for view in model.config.views}
    apart = {"uniform": [], "first half": [], "last half": [], "every other": []}
    with torch.no_grad():
        for step in range(200):
            whole, part = (plans(model.config, list(images), step, ratio) for ratio in (1.0, 0.5))
            assert all(torch.equal(whole[view].keep, part[view].keep) for view in images)
            truth = float(model(images, whole).loss)
            apart["uniform"].append(float(model(images, part).loss) - truth)
            n = {view: plan.masked.shape[1] for view, plan in part.items()}
            for name, chosen in (
                ("first half", lambda masked, n: masked[:, :n]),
                ("last half", lambda masked, n: masked[:, -n:]),
                ("every other", lambda masked, n: masked[:, ::2][:, :n]),
            ):
                biased = {v: p._replace(masked=chosen(p.masked, n[v]).contiguous()) for v, p in whole.items()}
                apart[name].append(float(model(images, biased).loss) - truth)
    t = {name: float(np.mean(x) / (np.std(x, ddof=1) / len(x) ** 0.5)) for name, x in apart.items()}
    assert abs(t.pop("uniform")) < 3.5
    assert min(map(abs, t.values())) > 7, t
