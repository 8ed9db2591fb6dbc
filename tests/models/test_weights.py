"""Weights in and out: nothing is lost, nothing is loaded by halves, nothing in a file is executed."""

import copy
import os
import pickle

import pytest
import torch
from small_models import make_images, make_plan, small_config, small_model

import cinema_fast as cf
from cinema_fast.models.weights import load_shared_views, load_torch


def files(model, folder):
    """The same weights as each kind of file that can be read."""
    from safetensors.torch import save_file

    state = {k: t.contiguous() for k, t in model.state_dict().items()}
    save_file(state, folder / "w.safetensors")
    torch.save(state, folder / "w.pt")
    torch.save({"model": state, "step": 3}, folder / "nested.pt")
    return [folder / name for name in ("w.safetensors", "w.pt", "nested.pt")]


def same(a, b):
    return sorted(a) == sorted(b) and all(torch.equal(a[k], b[k]) for k in a)


def test_state_dict_round_trip():
    source, target = small_model(0), small_model(1)
    state = cf.cinema_state_dict(source)
    assert not any(t.requires_grad for t in state.values())
    assert not same(state, cf.cinema_state_dict(target))
    cf.load_cinema_weights(target, state)
    assert same(state, cf.cinema_state_dict(target))


def test_files_round_trip(tmp_path):
    source = small_model(0)
    for path in files(source, tmp_path):
        target = small_model(1)
        cf.load_cinema_weights(target, path)
        assert same(source.state_dict(), target.state_dict()), path
        cf.load_cinema_weights(target, str(path))


def test_other_precision_is_cast():
    source, target = small_model(0), small_model(1)
    cf.load_cinema_weights(target, {k: t.double() for k, t in source.state_dict().items()})
    assert same(source.state_dict(), target.state_dict())


def test_gradients_under_the_same_names():
    model = small_model()
    assert cf.cinema_state_dict(model, grad=True) == {}
    images = make_images(model.config)
    model(images, make_plan(model.config, images)).loss.backward()
    grads = cf.cinema_state_dict(model, grad=True)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert set(grads) == trained
    assert all(grads[k].shape == t.shape for k, t in model.state_dict().items() if k in grads)
    assert all(torch.equal(grads[k], model.get_parameter(k).grad) for k in grads)


def test_every_misfit_is_listed_and_nothing_loaded():
    model = small_model(0)
    before = copy.deepcopy(model.state_dict())
    state = dict(small_model(1).state_dict())
    del state["encoder.cls_token"], state["dec_linear.bias"]
    state["more.weight"] = torch.zeros(2)
    state["dec_linear.weight"] = torch.zeros(24, 17)
    with pytest.raises(ValueError) as error:
        cf.load_cinema_weights(model, state)
    message = str(error.value)
    assert message.startswith("4 tensors do not fit")
    assert "missing encoder.cls_token (1, 1, 16)" in message
    assert "missing dec_linear.bias (24,)" in message
    assert "unexpected more.weight (2,)" in message
    assert "dec_linear.weight: expected (24, 16), got (24, 17)" in message
    assert same(before, model.state_dict())


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda t: t.fill_(torch.nan), r"1 of \d+ tensors in .*w\.pt hold numbers that are not finite, encoder\.cls"),
        (lambda t: t.double().fill_(1e300), r"not finite, encoder\.cls_token among them"),  # in float32 it is infinite
        (lambda t: t.to(torch.int8), r"1 tensors in .*\n  encoder\.cls_token: expected floating-.*, got torch\.int8"),
        (lambda t: t.bool(), r"encoder\.cls_token: expected floating-point numbers, got torch\.bool"),
    ],
    ids=["NaN", "too large", "int8", "bool"],
)
def test_weights_that_nothing_can_be_learnt_from(tmp_path, spoil, told):
    model, state = small_model(0), dict(small_model(1).state_dict())
    before = copy.deepcopy(model.state_dict())
    torch.save(state | {"encoder.cls_token": spoil(state["encoder.cls_token"].clone())}, tmp_path / "w.pt")
    for load in (cf.load_cinema_weights, load_shared_views):
        with pytest.raises(ValueError, match=told):
            load(model, tmp_path / "w.pt")
    assert same(before, model.state_dict())


def test_weights_of_another_size_name_the_file(tmp_path):
    path = files(small_model(enc_embed_dim=32), tmp_path)[0]
    with pytest.raises(ValueError, match=r"tensors in .*w\.safetensors do not fit.*(\n.*)*expected"):
        cf.load_cinema_weights(small_model(), path)


def test_a_state_dict_under_model_is_taken_from_a_dict_too():
    source, target = small_model(0), small_model(1)
    cf.load_cinema_weights(target, {"model": source.state_dict()})
    assert same(source.state_dict(), target.state_dict())


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    path, trace = tmp_path / "weights.pt", tmp_path / "ran"
    torch.save({"encoder.cls_token": torch.zeros(1), "x": Malicious(trace)}, path)
    with pytest.raises(ValueError) as error:
        cf.load_cinema_weights(small_model(), path)
    held = f"{os.mkdir.__module__}.mkdir"  # of PyTorch's advice to load it all the same nothing is passed on
    assert str(error.value) == f"{path} cannot be read as weights: it holds {held}, and only tensors are accepted"
    assert not trace.exists()
    with open(path, "rb"):  # the payload itself works
        torch.load(path, weights_only=False)
    assert trace.exists()


def test_a_file_that_is_not_there_is_no_damaged_one(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_torch(tmp_path / "weights_only.pt")


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_damaged_files_are_named(tmp_path, name):
    path = next(p for p in files(small_model(), tmp_path) if p.name == name)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=rf"{name} cannot be read as weights"):
        cf.load_cinema_weights(small_model(), path)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "content",
    [b"", b"hello world", b"\x93NUMPY\x01\x00v\x00{'descr'", b"\x80\x02garbage", pickle.dumps([1], protocol=4)],
    ids=["empty", "text", "NumPy", "cut pickle", "pickle"],
)
def test_files_of_another_kind_are_named_in_one_line(tmp_path, content):
    path = tmp_path / "w.pt"
    path.write_bytes(content)
    with pytest.raises(ValueError) as error:
        cf.load_cinema_weights(small_model(), path)
    assert str(error.value) == f"{path} cannot be read as weights: not a torch file, or damaged"


class Wrapper(torch.nn.Module):
    """As DataParallel and its like: the model under `module`."""

    def __init__(self, module):
        super().__init__()
        self.module = module


def compiled(model):
    return torch.compile(model, backend="eager")


def compiled_inside(model):
    model.encoder = compiled(model.encoder)
    return model


WRAPPERS = [compiled, Wrapper, lambda m: Wrapper(compiled(m)), lambda m: compiled(Wrapper(m)), compiled_inside]


@pytest.mark.parametrize("wrap", WRAPPERS, ids=["compiled", "module", "both", "both, inside out", "a part compiled"])
def test_compiled_and_wrapped_models_have_the_published_names(wrap):
    plain, wrapped = small_model(0), wrap(small_model(1))
    assert any("_orig_mod" in name or name.startswith("module.") for name in wrapped.state_dict())
    assert same(cf.cinema_state_dict(wrapped), cf.cinema_state_dict(small_model(1)))
    cf.load_cinema_weights(wrapped, plain.state_dict())
    assert same(cf.cinema_state_dict(wrapped), plain.state_dict())
    target = small_model(2)
    cf.load_cinema_weights(target, wrapped.state_dict())  # what others save without taking the wrapper off
    assert same(target.state_dict(), plain.state_dict())
    for parameter in wrapped.parameters():
        parameter.grad = torch.ones_like(parameter)
    assert set(cf.cinema_state_dict(wrapped, grad=True)) == set(dict(plain.named_parameters()))
    with pytest.raises(ValueError, match=r"1 tensors do not fit this model:\n  missing encoder\.cls_token"):
        cf.load_cinema_weights(wrapped, {k: t for k, t in plain.state_dict().items() if k != "encoder.cls_token"})


def test_one_tensor_under_two_names_is_refused():
    state = small_model().state_dict()
    with pytest.raises(ValueError, match="one name twice"):
        cf.load_cinema_weights(small_model(), state | {"module.encoder.cls_token": torch.zeros(1, 1, 16)})


def test_files_without_weights_are_named(tmp_path):
    torch.save({"step": 3}, tmp_path / "state.pt")
    with pytest.raises(ValueError, match=r"state\.pt holds no state dict"):
        cf.load_cinema_weights(small_model(), tmp_path / "state.pt")
    with pytest.raises(FileNotFoundError, match=r"absent\.safetensors"):
        cf.load_cinema_weights(small_model(), tmp_path / "absent.safetensors")


def test_fresh_weights_follow_the_published_initialisation():
    torch.manual_seed(0)
    model = cf.CineMA(small_config(enc_embed_dim=96, dec_embed_dim=96))
    tokens = {"encoder.cls_token": 96, **{f"dec_embed_dict.{v}.mask_token": 96 for v in model.config.views}}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            bound = (6 / (module.in_features + module.out_features)) ** 0.5  # Xavier; kv counts as one matrix
            top = float(module.weight.detach().abs().max())
            assert 0.9 * bound < top <= bound, name
            assert not module.bias.any(), name
        if isinstance(module, torch.nn.LayerNorm):
            assert bool((module.weight == 1).all()) and not module.bias.any(), name
        if isinstance(module, (torch.nn.Conv2d, torch.nn.Conv3d)):  # PyTorch's own: within 1 / sqrt(fan in)
            bound = (module.weight[0].numel()) ** -0.5
            assert 0.5 * bound < float(module.weight.detach().abs().max()) <= bound * (1 + 1e-6), name
            assert module.bias.any() and float(module.bias.detach().abs().max()) <= bound * (1 + 1e-6), name
    for name in tokens:
        assert 0.01 < float(model.get_parameter(name).detach().std()) < 0.03, name
