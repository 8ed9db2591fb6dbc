"""torch.compile of a whole step: no graph break, and what eager gives."""

import pytest
import torch
from small_models import make_images, make_plan, small_model
from tolerances import assert_close

import cinema_fast as cf


@pytest.mark.parametrize(
    "compiler",
    ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)],  # inductor: two minutes of C++
)
def test_forward_and_backward_in_one_graph(compiler):
    model = small_model(enc_depth=1, dec_depth=1, views=("sax", "lax_4c"))
    images = make_images(model.config)
    plan = make_plan(model.config, images)
    out = model(images, plan)
    out.loss.backward()
    grads = {k: g.double() for k, g in cf.cinema_state_dict(model, grad=True).items()}
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
