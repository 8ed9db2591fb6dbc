"""The model against files made by running the CineMA reference: loss, predictions, gradients, features."""

import json

import pytest
import torch
from golden_files import all_launched, launches_of, part, relative, relative_rms
from marks import in_full, slow_in_interpreter

import cinema_fast as cf

CASES = ("tiny", "sax_only", "norm_other_size")
CPU_BACKENDS = ("native",)
NOT_CONFIG = ("name", "batch", "mask_ratio")
IN_FEATURES = {"patch_embed", "sparse_depthwise_conv", "sparse_attention"}
IN_STEP = launches_of(*IN_FEATURES, "assemble_queries", "masked_mse")


def load_case(shared, name, device="cpu"):
    from safetensors.torch import load_file

    fields = json.loads((shared / "golden" / f"{name}.json").read_text())
    tensors = load_file(shared / "golden" / f"{name}_mae.safetensors", device=device)
    config = cf.CineMAConfig(**{k: v for k, v in fields.items() if k not in NOT_CONFIG})
    return config, tensors


def step(model, images, masks):
    plan = {v: cf.TokenPlan.from_mask(mask) for v, mask in masks.items()}
    model.zero_grad()
    out = model(images, plan)
    out.loss.backward()
    return out


@pytest.mark.parametrize("name", in_full(sorted(CASES, key=lambda name: name != "norm_other_size")))
def test_step_matches_reference(shared, backend, device, name):
    config, tensors = load_case(shared, name, device)
    model = cf.CineMA(config).to(device)
    cf.load_cinema_weights(model, part(tensors, "param."))
    with all_launched(backend, IN_STEP):
        out = step(model, part(tensors, "image."), part(tensors, "mask."))
    assert relative(out.loss, tensors["loss"]) < 1e-5
    for view, pred in part(tensors, "pred.").items():
        assert relative(out.pred[view], pred) < 1e-5, view
    grads = cf.cinema_state_dict(model, grad=True)
    expected = part(tensors, "grad.")
    assert set(grads) == set(expected)
    worst = max((relative_rms(grads[k], g), k) for k, g in expected.items())
    assert worst[0] < 1e-4, worst


@slow_in_interpreter
@pytest.mark.parametrize("name", CASES)
def test_features_match_reference(shared, backend, device, name):
    config, tensors = load_case(shared, name, device)
    model = cf.CineMA(config).to(device)
    cf.load_cinema_weights(model, part(tensors, "param."))
    images = part(tensors, "image.")
    cases = {
        "feature.": images,
        "feature_only_sax.": {"sax": images["sax"]},
        "other_feature.": part(tensors, "other_image."),
    }
    tried = 0
    with torch.no_grad():
        for prefix, given in cases.items():
            expected = part(tensors, prefix)
            if expected:
                with all_launched(backend, IN_FEATURES):
                    features = model.encode(given)
                assert set(features) == set(expected)
                for key, value in expected.items():
                    assert relative(features[key], value) < 1e-5, (prefix, key)
                tried += 1
    assert tried >= 1


@pytest.mark.parametrize("name", CASES)
def test_fresh_position_tables_and_names_match_reference(shared, name):
    config, tensors = load_case(shared, name)
    expected = part(tensors, "param.")
    state = cf.cinema_state_dict(cf.CineMA(config))
    assert {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in expected.items()}
    for key in (k for k in expected if k.endswith("pos_embed")):
        assert relative(state[key], expected[key]) < 1e-6, key


def test_weights_go_out_bit_for_bit(shared):
    config, tensors = load_case(shared, "tiny")
    model = cf.CineMA(config)
    expected = part(tensors, "param.")
    cf.load_cinema_weights(model, expected)
    state = cf.cinema_state_dict(model)
    assert sorted(state) == sorted(expected)
    assert all(torch.equal(state[k], expected[k]) for k in expected)
