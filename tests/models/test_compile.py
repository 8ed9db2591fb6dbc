"""torch.compile of a whole step: no graph break, and what eager gives."""

import copy
from pathlib import Path

import pytest
import torch
from marks import slow
from small_models import make_images, make_plan, small_model
from tolerances import assert_close
from torch._dynamo.utils import counters

import cinema_fast as cf
from cinema_fast.train.compile import compile_model, source_digest


@pytest.mark.parametrize(
    "compiler",
    [slow("aot_eager"), slow("inductor")],  # inductor: two minutes of C++
)
def test_forward_and_backward_in_one_graph(compiler):
    model = small_model(enc_depth=1, dec_depth=1, views=("sax", "lax_4c"))
    images = make_images(model.config)
    plan = make_plan(model.config, images)
    # aot_eager does what eager does; Inductor adds in another order, so that float64 judges it
    dtype = torch.float64 if compiler == "inductor" else torch.float32
    oracle = copy.deepcopy(model).to(dtype)
    out = oracle({view: image.to(dtype) for view, image in images.items()}, plan)
    out.loss.backward()
    grads = {k: g.double() for k, g in cf.cinema_state_dict(oracle, grad=True).items()}
    model.zero_grad()
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend=compiler)
    again = compiled(images, plan)
    again.loss.backward()
    assert_close(again.loss, out.loss)
    for view in images:
        assert_close(again.pred[view], out.pred[view])
    scale = max(float(g.abs().max()) for g in grads.values())
    for name, grad in cf.cinema_state_dict(model, grad=True).items():
        assert_close(grad, grads[name], floor=1e-2 * scale, name=name)
    # another draw of the same size neither recompiles nor bakes the first in
    other = {v: cf.sample_mask(batch=2, n=p.slot.shape[1], keep=p.keep.shape[1], seed=9) for v, p in plan.items()}
    with torch.compiler.set_stance("fail_on_recompile"):
        fresh = compiled(images, other)
    assert_close(fresh.loss, model(images, other).loss)


@pytest.mark.slow
def test_a_later_process_finds_the_compiled_code(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    model = small_model(enc_depth=1, dec_depth=1, views=("lax_4c",))
    images = make_images(model.config)
    plan = make_plan(model.config, images)
    losses, grads = [], []
    for found in ("autograd_cache_miss", "autograd_cache_hit"):
        torch.compiler.reset()
        counters.clear()
        model.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = compile_model(model)(images, plan).loss
        loss.backward()
        assert counters["aot_autograd"][found] == 1 and not counters["aot_autograd"]["autograd_cache_bypass"]
        losses.append(loss.detach())
        grads.append(cf.cinema_state_dict(model, grad=True))
    assert torch.equal(*losses)
    assert all(torch.equal(grad, grads[1][name]) for name, grad in grads[0].items())


def test_the_cache_is_keyed_by_the_sources_of_the_kernels(tmp_path):
    (tmp_path / "op.py").write_text("def backward(): return 1")
    before = source_digest(tmp_path)
    assert source_digest(tmp_path) == before
    (tmp_path / "op.py").write_text("def backward(): return 2")
    assert source_digest(tmp_path) != before
    compile_model(torch.nn.Identity())
    compile_model(torch.nn.Identity())
    sources = source_digest(Path(cf.kernels.__file__).parent)
    assert torch.compiler.config.cache_key_tag.count(sources) == 1
