"""augment_images and move_maps on every backend against their PyTorch form in float64."""

import pytest
import torch
from augment_cases import MOVED, MOVES, Case, cases, check, everything, images, is_ambiguous
from hypothesis import HealthCheck, assume, given, settings
from machine import INTERPRET

from cinema_fast.kernels import BackendError, augment_images, launches, move_maps, use
from cinema_fast.kernels.augment_images import native_form
from cinema_fast.kernels.augment_images.torch_form import move_maps_ref

CPU_BACKENDS = ("native",)
SIZES = {"2-D": (21, 18), "3-D": (9, 8, 16), "clip": (3, 14, 17)}
SOME = [{name} for name in MOVES] + [{"gamma"}, {"noise", "noise_key"}, {"zoom", "gamma"}, {"flip", "shift"}]
SOME = [set(), {"zoom"}] if INTERPRET else [set(), *SOME]  # the interpreter takes half a second a call


def case_of(kind: str, names: set[str] | None = None, n: int = 3, seed: int = 0) -> Case:
    """n images of other extents each; every parameter, or those named."""
    size = SIZES[kind]
    extents = [tuple(max(s - (i + a) % 3, 1) for a, s in enumerate(size)) for i in range(n)]
    frames, extent = images(extents, size, seed)
    how = {name: value for name, value in everything(n).items() if names is None or name in names}
    return Case(frames, extent, kind == "clip", how)


def made(case: Case, backend: str, device: str = "cpu") -> torch.Tensor:
    frames, extent, clip, how = case.on(device)
    return augment_images(frames, extent, **how, clip=clip, backend=backend).cpu()


@pytest.mark.recompiles
@settings(
    max_examples=6 if INTERPRET else 60, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
@given(case=cases(longest=7 if INTERPRET else 24))
def test_any_case(backend, device, case):
    assume(not is_ambiguous(case))
    check(made(case, backend, device), case)
    if not case.clip:
        assert_maps(case, backend, device)


def assert_maps(case: Case, backend: str, device: str) -> None:
    there = case.on(device)
    found = move_maps(there.frames, there.extent, **there.moves, backend=backend).cpu()
    moves = dict.fromkeys(MOVES) | case.moves
    expected = move_maps_ref(case.frames, case.extent, **moves, dtype=torch.float64)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=MOVED)


@pytest.mark.parametrize("names", [*SOME, None], ids=lambda s: "all" if s is None else " ".join(sorted(s)))
@pytest.mark.parametrize("kind", SIZES)
def test_each_parameter_alone_and_all_together(backend, device, kind, names):
    case = case_of(kind, names)
    check(made(case, backend, device), case)
    if kind != "clip":
        assert_maps(case, backend, device)


@pytest.mark.parametrize("names", [{"zoom"}, {"zoom", "angle"}], ids=["separable", "turned"])
@pytest.mark.parametrize("kind", SIZES)
def test_an_image_that_stays_constant_is_black(backend, device, kind, names):
    """Enlarged or left alone, so that no zeros come in; what interpolation rounds is not scaled to [0, 1]."""
    case = case_of(kind, names)
    case.frames[case.frames > 0] = 201
    case.frames[case.frames == 0] = 201  # padding too, which then cannot matter
    how = {"zoom": torch.tensor([1.0, 1.3, 1.7])} | ({"angle": torch.zeros(3)} if "angle" in names else {})
    assert not made(case._replace(how=how), backend, device).any()


def test_a_volume_of_one_slice_is_interpolated_as_a_volume(backend, device):
    frames, extent = images([(9, 7, 1), (8, 8, 1)], (9, 8, 1))
    case = Case(frames, extent, False, {"zoom": torch.tensor([1.1, 0.9])})
    check(made(case, backend, device), case)
    flat = Case(frames[..., 0], extent[:, :2], False, case.how)
    assert (made(case, backend, device)[..., 0] - made(flat, backend, device)).abs().max() > 0.01


def test_one_pixel(backend, device):
    frames, extent = images([(1, 1, 1), (1, 1, 1)], (3, 2, 2))
    for names in ({"zoom", "flip"}, {"angle", "flip"}):
        how = {name: value for name, value in everything(2).items() if name in names}
        assert not made(Case(frames, extent, False, how), backend, device).any()
        assert torch.equal(move_maps(frames.to(device), extent.to(device), backend=backend).cpu(), frames.float())


@pytest.mark.parametrize("turns", [-1, 1, 2])
@pytest.mark.parametrize("kind", ["2-D", "3-D"])
def test_quarter_turns_and_whole_pixels_to_the_bit(backend, device, kind, turns):
    size = (14, 14, 5)[: len(SIZES[kind])]
    maps, extent = images([size] * 2, size)
    angle = torch.full((2,), turns * torch.pi / 2, dtype=torch.float64, device=device)
    shift = torch.tensor([[0.0, 3.0]] * 2, device=device)
    found = move_maps(maps.to(device), extent.to(device), angle=angle, shift=shift, backend=backend)
    expected = torch.rot90(maps.float(), turns, (1, 2)).roll(3, 2)
    expected[:, :, :3] = 0
    assert torch.equal(found.cpu(), expected)


@pytest.mark.parametrize("names", [{"zoom"}, None][INTERPRET:], ids=["zoom", "all"][INTERPRET:])
@pytest.mark.parametrize("kind", SIZES)
def test_no_image_hangs_on_the_others_nor_on_the_run(backend, device, kind, names):
    case = case_of(kind, names)
    together = made(case, backend, device)
    assert torch.equal(together, made(case, backend, device))
    order = torch.tensor([2, 0, 1])
    permuted = made(case.part(order), backend, device)
    alone = torch.cat([made(case.part(slice(i, i + 1)), backend, device) for i in range(3)])
    if backend == "torch":  # a matrix product may take another way for another batch
        torch.testing.assert_close(permuted, together[order], rtol=0, atol=1e-6)
        torch.testing.assert_close(alone, together, rtol=0, atol=1e-6)
    else:
        assert torch.equal(permuted, together[order]) and torch.equal(alone, together)


def test_gaps_in_memory_do_not_matter(backend, device):
    case = case_of("3-D").on(device)
    gaps = Case(*(torch.stack([t, t], -1)[..., 0] for t in case[:2]), False,
                {name: torch.stack([t, t], -1)[..., 0] for name, t in case.how.items()})  # fmt: skip
    assert torch.equal(made(gaps, backend, device), made(case, backend, device))


def test_no_images(backend, device):
    case = case_of("2-D")
    assert made(case.part(slice(0, 0)), backend, device).shape == (0, *SIZES["2-D"])
    assert made(case, backend, device).any()


native = pytest.mark.skipif(bool(native_form.PROBLEM), reason=native_form.PROBLEM)


@native
@pytest.mark.parametrize("kind", SIZES)
def test_any_number_of_threads_gives_the_same_bits(kind):
    threads, results = torch.get_num_threads(), []
    case = case_of(kind, n=47)  # so many that threads meet
    try:
        for n in (1, 2, 3, 7):
            torch.set_num_threads(n)
            results.append(made(case, "native"))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(result, results[0]) for result in results)


@native
def test_extents_beyond_the_room_and_parameters_that_are_no_numbers_read_no_other_memory():
    frames, _ = images([(9, 8, 5)] * 3, (9, 8, 5))
    odd = torch.tensor([torch.nan, torch.inf, 0.0])
    for extent in ([99, 99, 99], [-3, 4, 5], [0, 8, 5]):
        for how in ({"zoom": odd}, {"zoom": odd, "angle": odd}, {"shift": odd[:, None].expand(3, 2)}):
            assert augment_images(frames, torch.tensor([extent] * 3), **how, backend="native").shape == frames.shape


@native
def test_the_operator_is_sound():
    frames, extent, clip, how = case_of("clip")
    torch.library.opcheck(native_form.augment, (frames, extent), {**how, "clip": clip, "maps": False})


def test_without_the_library_the_pytorch_form_runs(monkeypatch):
    monkeypatch.setattr(native_form, "PROBLEM", "it was not built")
    case = case_of("2-D")
    before = launches().get("augment_images", 0)
    assert torch.equal(made(case, "auto"), made(case, "torch")) and launches().get("augment_images", 0) == before
    with pytest.raises(BackendError, match="augment_images: backend 'native' cannot run: it was not built"):
        made(case, "native")
    with use("native"), pytest.raises(BackendError, match="move_maps: backend 'native' cannot run"):
        move_maps(case.frames, case.extent)


BAD = {
    "frames must be uint8": {"frames": torch.zeros(2, 4, 4)},
    r"frames must be uint8 \(B, X, Y\[, Z\]\), got torch.uint8 \(2, 4\)": {"frames": torch.zeros(2, 4).byte()},
    r"extent must be int64 \(2, 2\) for frames \(2, 4, 4\), got torch.int64": {"extent": torch.ones(2, 3).long()},
    r"extent must be int64 .*got torch.int32": {"extent": torch.ones(2, 2).int()},
    r"zoom must be floating \(2,\)": {"zoom": torch.ones(3)},
    "angle must be floating": {"angle": torch.zeros(2).long()},
    r"shift must be floating \(2, 2\)": {"shift": torch.zeros(2)},
    "flip must be bool": {"flip": torch.zeros(2, 2)},
    "gamma must be floating": {"gamma": torch.ones(2, 1)},
    "noise and noise_key go together": {"noise": torch.ones(2)},
    "noise_key must be int64": {"noise": torch.ones(2), "noise_key": torch.ones(2)},
    r"expected clips \(B, T, X, Y\)": {"clip": True},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_named(message):
    arguments = {"frames": torch.zeros(2, 4, 4, dtype=torch.uint8), "extent": torch.full((2, 2), 4)} | BAD[message]
    with pytest.raises(ValueError, match=f"augment_images: .*{message}"):
        augment_images(**arguments)


def test_bad_maps_are_named():
    with pytest.raises(ValueError, match=r"move_maps: maps must be uint8 .*got torch.float32"):
        move_maps(torch.zeros(2, 4, 4), torch.full((2, 2), 4))


@native
def test_use_by_the_operations_name_reaches_maps_too():
    maps, extent = torch.zeros(2, 9, 8, dtype=torch.uint8), torch.tensor([[9, 8]] * 2)
    before = launches().get("move_maps", 0)
    with use("torch", "augment_images"):
        move_maps(maps, extent)
    assert launches().get("move_maps", 0) == before
    move_maps(maps, extent)
    assert launches()["move_maps"] > before
