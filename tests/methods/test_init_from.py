"""`--init-from`: weights for the views that both have, or of student and teacher; what is taken is said."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_runs import FOUR

import cinema_fast as cf
from cinema_fast.methods.pretrain import pretrain
from cinema_fast.methods.pretrain_config import PretrainConfig
from cinema_fast.tasks.finetune import finetune
from cinema_fast.tasks.finetune_config import FinetuneConfig
from cinema_fast.tasks.finetuned_run import load_run
from cinema_fast.train.run_info import LabelInfo, RunInfo, StoreInfo, read_run_info, write_run_info

pytestmark = pytest.mark.usefixtures("no_report")


def weights_of(store, out, **changes):
    """The weights of a run of one step too small to see, and what run.log says of where they came from."""
    options = {"steps": 1, "preset": "cinema-tiny", "batch_size": 4, "lr": 1e-12, "min_lr": 0, "precision": "fp32"}
    pretrain(PretrainConfig(data=store, out=out, device="cpu", **options | changes))
    lines = [line for line in (out / "run.log").read_text().splitlines() if "weights of" in line]
    return out / "checkpoints" / "step-00000001.safetensors", lines


def view_of(name: str) -> str | None:
    return name.split(".")[1] if name.split(".")[1] in FOUR else None


def equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=0, atol=1e-9)


def check(start, found, fresh, views, taken):
    """Shared tensors are those of `start`, the others those of a run of the same seed without it."""
    start, found, fresh = load_file(start), load_file(found), load_file(fresh)
    assert {view_of(name) for name in found} == {None, *views}
    apart = 0
    for name, tensor in found.items():
        shared = view_of(name) is None or view_of(name) in taken
        assert equal(tensor, start[name] if shared else fresh[name]), name
        apart += shared and not equal(start[name], fresh[name])
    assert apart > 10  # the two could be told apart


def test_two_views_into_four(tiny_store, tmp_path):
    start, said = weights_of(tiny_store, tmp_path / "two", views=("sax", "lax_4c"), seed=1)
    assert not said
    fresh, _ = weights_of(tiny_store, tmp_path / "fresh", seed=2)
    found, said = weights_of(tiny_store, tmp_path / "run", seed=2, init_from=start)
    check(start, found, fresh, FOUR, ("sax", "lax_4c"))
    taken = "views taken: sax, lax_4c; from random weights: lax_2c, lax_3c"
    assert len(said) == 1 and said[0].endswith(f"weights of {start}: {taken}")


def test_four_views_into_one_and_other_two(tiny_store, tmp_path):
    start, _ = weights_of(tiny_store, tmp_path / "four", seed=1)
    for views in (("sax",), ("lax_2c", "lax_3c")):
        fresh, _ = weights_of(tiny_store, tmp_path / f"fresh {views}", views=views, seed=2)
        found, said = weights_of(tiny_store, tmp_path / f"run {views}", views=views, seed=2, init_from=start)
        check(start, found, fresh, views, views)
        left = ", ".join(sorted(set(FOUR) - set(views)))
        assert len(said) == 1 and said[0].endswith(f"views taken: {', '.join(views)}; not used: {left}")


def test_some_taken_some_fresh_some_left(tiny_store, tmp_path):
    start, _ = weights_of(tiny_store, tmp_path / "start", views=("lax_2c", "lax_3c"), seed=1)
    fresh, _ = weights_of(tiny_store, tmp_path / "fresh", views=("sax", "lax_2c"), seed=2)
    found, said = weights_of(tiny_store, tmp_path / "run", views=("sax", "lax_2c"), seed=2, init_from=start)
    check(start, found, fresh, ("sax", "lax_2c"), ("lax_2c",))
    assert said[0].endswith("views taken: lax_2c; from random weights: sax; not used: lax_3c")


def test_what_is_shared_has_to_fit(tiny_store, tmp_path):
    start, _ = weights_of(tiny_store, tmp_path / "start", views=("lax_2c",), seed=1)
    run = {"store": tiny_store, "out": tmp_path / "run", "init_from": start}
    with pytest.raises(ValueError, match=r"has weights of the views lax_2c, expected one or more of sax, lax_3c"):
        weights_of(**run, views=("sax", "lax_3c"))
    with pytest.raises(ValueError, match=r"has weights of the views lax_2c, expected one or more of clip"):
        weights_of(**run, preset="heartmae-tiny")
    with pytest.raises(ValueError, match=r"encoder\.cls_token: expected \(1, 1, 128\), got \(1, 1, 16\)") as error:
        weights_of(**run, preset="cinema-demo")
    assert "pred_head_dict.sax" not in str(error.value)  # a view that starts fresh is not missing
    altered = load_file(start)
    del altered["dec_embed_dict.lax_2c.mask_token"]
    save_file(altered, start)
    with pytest.raises(ValueError, match=r"1 tensors in .*\n  missing dec_embed_dict\.lax_2c\.mask_token"):
        weights_of(**run)
    save_file({"step": torch.zeros(1)}, start)
    with pytest.raises(ValueError, match=r"has no weights of CineMA or HeartMAE, expected one or more of"):
        weights_of(**run)
    assert not (tmp_path / "run").exists()


def test_the_folder_of_a_run_gives_its_newest_weights(tiny_store, tmp_path):
    start, _ = weights_of(tiny_store, tmp_path / "start", seed=1)
    fresh, _ = weights_of(tiny_store, tmp_path / "fresh", seed=2)
    info = read_run_info(tmp_path / "start")
    write_run_info(tmp_path / "start", replace(info, store=replace(info.store, orientation="patient")))
    found, said = weights_of(tiny_store, tmp_path / "run", seed=2, init_from=tmp_path / "start")
    check(start, found, fresh, FOUR, FOUR)
    assert said[0].endswith(f"weights of {tmp_path / 'start'}, step 1: views taken: {', '.join(FOUR)}")
    axes = "was trained on images with other axes (prepare --orientation patient; this store: stored)"
    assert f"{tmp_path / 'start'} {axes}" in (tmp_path / "run" / "run.log").read_text()


def test_folders_that_give_none(tiny_store, tmp_path):
    run = {"store": tiny_store, "out": tmp_path / "run", "init_from": tmp_path / "start"}
    (tmp_path / "start").mkdir()
    with pytest.raises(ValueError, match=r"--init-from .*start: no run in this folder \(no config\.yaml\)"):
        weights_of(**run)
    info = RunInfo({"preset": "cinema-tiny"}, {}, StoreInfo(1, "ab", "stored"), {})
    write_run_info(tmp_path / "start", info)
    with pytest.raises(ValueError, match=r"--init-from .*start: this run has no checkpoint yet"):
        weights_of(**run)
    with pytest.raises(ValueError, match="--preset cinema-tiny, but this run is of cinema-demo: give --preset"):
        weights_of(**run, preset="cinema-demo")
    labels = LabelInfo({}, {"train": [], "val": [], "test": []}, [])
    write_run_info(tmp_path / "start", replace(info, labels=labels))
    with pytest.raises(ValueError, match=r"start: a run of finetune, .* not those of pre-training; expected a run"):
        weights_of(**run)
    assert not (tmp_path / "run").exists()


def test_loading_by_hand_stays_strict(tiny_store, tmp_path):
    start, _ = weights_of(tiny_store, tmp_path / "start", views=("sax",))
    with pytest.raises(ValueError, match=r"missing pred_head_dict\.lax_2c"):
        cf.load_cinema_weights(cf.CineMA(cf.preset("cinema-tiny")), start)


def test_a_resumed_run_does_not_begin_from_them_again(tiny_store, tmp_path):
    start, _ = weights_of(tiny_store, tmp_path / "start", views=("sax",))
    found, _ = weights_of(tiny_store, tmp_path / "run", init_from=start)
    before = found.read_bytes()
    start.unlink()
    _, said = weights_of(tiny_store, tmp_path / "run", init_from=start, resume=True)
    assert len(said) == 1 and found.read_bytes() == before


OF_DINO = {"preset": "cmrfm-demo", "batch_size": 1, "warmup": 0.0, "weight_decay": 0.0, "views": ("lax_4c",)}


@pytest.fixture(scope="module")
def distilled(tiny_store, tmp_path_factory):
    """The folder of a run of self-distillation."""
    out = tmp_path_factory.mktemp("distilled") / "run"
    weights_of(tiny_store, out, seed=1, **OF_DINO)
    return out


def test_student_and_teacher_start_from_those_of_a_run(tiny_store, distilled, tmp_path):
    start = load_file(distilled / "checkpoints" / "step-00000001.safetensors")
    info = read_run_info(distilled)
    write_run_info(distilled, replace(info, store=replace(info.store, orientation="patient")))
    found, said = weights_of(tiny_store, tmp_path / "run", seed=2, init_from=distilled, **OF_DINO)
    write_run_info(distilled, info)
    whole = "student and teacher with their heads, and the centre"
    assert said[0].endswith(f"weights of {distilled}, step 1: {whole}")
    assert "images with other axes" in (tmp_path / "run" / "run.log").read_text()
    found = load_file(found)
    assert all(equal(tensor, start[name]) for name, tensor in found.items() if name != "centre")
    assert not torch.equal(found["centre"], start["centre"])  # it has moved on from there
    expected = 0.9 * start["centre"]  # and by a tenth of a mean of logits, which lie within -1 and 1
    assert (found["centre"] - expected).abs().max() <= 0.1


def test_a_backbone_starts_both(tiny_store, distilled, tmp_path):
    start = load_file(distilled / "checkpoints" / "step-00000001.safetensors")
    backbone = {n.removeprefix("teacher."): t for n, t in start.items() if n.startswith("teacher.backbone.")}
    save_file(backbone, tmp_path / "public.safetensors")
    fresh, _ = weights_of(tiny_store, tmp_path / "fresh", seed=2, **OF_DINO)
    found, said = weights_of(
        tiny_store, tmp_path / "run", seed=2, init_from=tmp_path / "public.safetensors", **OF_DINO
    )
    assert said[0].endswith("student and teacher start from its backbone, heads from random weights")
    found, fresh = load_file(found), load_file(fresh)
    for name in (name for name in found if name != "centre"):
        rest = name.partition(".")[2]
        assert equal(found[name], backbone[rest] if rest.startswith("backbone.") else fresh[name]), name


def test_weights_of_another_method_are_refused(tiny_store, distilled, tmp_path):
    mae, file = tmp_path / "mae", distilled / "checkpoints" / "step-00000001.safetensors"
    weights, _ = weights_of(tiny_store, mae)
    run = {"store": tiny_store, "out": tmp_path / "run"}
    with pytest.raises(ValueError, match="a run of --preset cinema-tiny, but this run is of cmrfm-demo"):
        weights_of(**run, init_from=mae, **OF_DINO)
    with pytest.raises(ValueError, match=rf"the weights in {weights} are of CineMA or HeartMAE .* ViT by DINO"):
        weights_of(**run, init_from=weights, **OF_DINO)
    with pytest.raises(ValueError, match="a run of --preset cmrfm-demo, but this run is of cinema-tiny"):
        weights_of(**run, init_from=distilled)
    with pytest.raises(ValueError, match=rf"{file} has no weights of CineMA or HeartMAE"):
        weights_of(**run, init_from=file)
    assert not (tmp_path / "run").exists()


def test_fine_tuning_is_not_supported_yet(tiny_store, distilled, tmp_path):
    options = {"data": tiny_store, "out": tmp_path / "run", "steps": 1, "task": "segmentation", "device": "cpu"}
    told = r"fine-tuning DINO's models \(cmrfm-\*\) is not supported yet, only CineMA's and HeartMAE's"
    with pytest.raises(ValueError, match=f"--init-from {distilled}, a run of --preset cmrfm-demo: {told}"):
        finetune(FinetuneConfig(**options, init_from=distilled))
    with pytest.raises(ValueError, match=f"--preset cmrfm-demo: {told}"):
        FinetuneConfig(**options, preset="cmrfm-demo")
    with pytest.raises(ValueError, match=f"{distilled} is a run of pretrain with --preset cmrfm-demo, .*: {told}"):
        load_run(distilled)
    assert not (tmp_path / "run").exists()
