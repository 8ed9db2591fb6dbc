"""Predictions of GPU times: counts against what can be reckoned by hand, and that the committed ones are the tree's."""

import importlib
import json
import math
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from torch import nn

pytest.importorskip("triton", reason="predictions read the machine code of Triton kernels")
audit_code, workload = map(importlib.import_module, ("audit_code", "workload"))
faked_gpu, python_backward, step_traffic, machine_cycles = map(
    importlib.import_module, ("faked_gpu", "python_backward", "step_traffic", "machine_cycles")
)
attention_time, dino_step, operation_work, step_cost, step_work, tutorial_attention, predict = map(
    importlib.import_module,
    ("attention_time", "dino_step", "operation_work", "step_cost", "step_work", "tutorial_attention", "predict"),
)

import predictions_results  # noqa: E402

from cinema_fast.kernels import OPERATIONS  # noqa: E402
from cinema_fast.kernels.backend import launching  # noqa: E402
from cinema_fast.kernels.sparse_attention import sparse_attention_flops  # noqa: E402
from cinema_fast.models.cinema import CineMA  # noqa: E402
from cinema_fast.models.config import DINOConfig, ViTConfig  # noqa: E402
from cinema_fast.models.flops import dino_step_flops, step_flops  # noqa: E402

HAS_DISASSEMBLER = (audit_code.TOOLS / "cuobjdump").exists()
LISTING = """
        /*0000*/                   LDC R1, c[0x0][0x28] ;                     /* 0x00000a00ff017b82 */
                                                                              /* 0x000fe20000000800 */
        /*0010*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR8], R24 ; /* 0x00e00000081879f0 */
        /*0020*/                   MUFU.EX2 R3, R3 ;                          /* 0x0 */
        /*0030*/               @P3 MUFU.EX2 R4, R4 ;                          /* 0x0 */
        /*0040*/                   FFMA R5, R4, R3, R2 ;                      /* 0x0 */
        /*0050*/               @P0 BRA 0x10 ;                                 /* 0x0 */
        /*0060*/                   HMMA.16816.F32.BF16 R4, R8, R6, R4 ;       /* 0x000000060804723c */
        /*0070*/              @!P1 BRA.U UP0, `(.L_x_1) 0x60 ;                /* 0x0 */
        /*0080*/                   BRA 0xa0 ;                                 /* 0x0 */
        /*0090*/                   EXIT ;                                     /* 0x0 */
        /*00a0*/                   BRA 0xa0 ;                                 /* 0x0 */
"""


@pytest.fixture(scope="module")
def committed():
    return predictions_results.read_predictions(predict.RESULTS)


@pytest.fixture(scope="module")
def toy():
    return step_traffic.eager_step("toy", 4, 1.0)


def total(operators, what):
    return sum(n * getattr(operator, what) for operator, n in operators.items())


# counting


def test_linear_layer():
    with faked_gpu.faked_gpu():
        x, weight = torch.empty(6, 32, device="cuda"), torch.empty(10, 32, device="cuda")
        with step_traffic.Traffic() as traffic:
            nn.functional.linear(x, weight)
    ((operator, n),) = traffic.operators.items()
    assert (operator.name, operator.launches, n) == ("aten::mm", 1, 1)
    assert operator.flops == 2 * 6 * 10 * 32
    assert operator.n_bytes == 4 * (6 * 32 + 10 * 32 + 6 * 10)


def test_mlp_forward_and_backward():
    with faked_gpu.faked_gpu():
        x = torch.empty(6, 32, device="cuda")
        first, second = (nn.Parameter(torch.empty(*shape, device="cuda")) for shape in ((16, 32), (4, 16)))
        with step_traffic.Traffic() as traffic:
            ((x @ first.T).relu() @ second.T).sum().backward()
    launches = {operator.name: 0 for operator in traffic.operators}
    for operator, n in traffic.operators.items():
        launches[operator.name] += n
    # x has no gradient: three of the four products of backward
    assert launches == {
        "aten::mm": 5, "aten::relu": 1, "aten::sum": 1, "aten::ones_like": 1, "aten::threshold_backward": 1,
    }  # fmt: skip
    assert total(traffic.operators, "flops") == 2 * (2 * 6 * 32 * 16) + 3 * (2 * 6 * 16 * 4)
    assert first.grad.shape == first.shape and first.grad.is_cuda


def test_what_is_neither_read_nor_launched():
    with faked_gpu.faked_gpu():
        x = torch.empty(8, 4, device="cuda")
        with step_traffic.Traffic() as traffic:
            torch.zeros_like(x)
            torch.empty_like(x)
            x.view(4, 8).T.unsqueeze(0)[:, 1]
            x.sum(0, keepdim=True).expand(8, 4).clone()
            torch.ones(3) + 1  # not on the GPU
    moved = {operator.name: operator.n_bytes for operator in traffic.operators}
    assert moved == {"aten::zeros_like": 128, "aten::sum": 128 + 16, "aten::clone": 16 + 128}


@pytest.mark.parametrize(
    ("sizes", "most", "launches"),
    [
        ([1] * 110, 110, 1), ([1] * 111, 110, 2), ([65536 * 320], 110, 1), ([65536 * 320 + 1], 110, 2),
        ([65536 * 319, 65536 * 2], 36, 2), ([1] * 72, 36, 2), ([0, 0], 36, 0), ([], 36, 0),
    ],
)  # fmt: skip
def test_multi_tensor_launches(sizes, most, launches):
    assert step_traffic.foreach_launches(sizes, most) == launches


def test_products_of_self_distillation_are_the_useful_ones():
    """All that `dino_step_flops` counts but what operations of ours compute: attention, the first layer, logits."""
    vit = ViTConfig(embed_dim=32, depth=3, n_heads=2, image_size=32)
    config = DINOConfig(vit, prototypes=64, head_hidden=48, bottleneck=16, n_local=2, local_size=32)
    batch, n, passes = 4, 17, 2 + 3 * (2 + config.n_local)  # crops, three times where there is a backward
    step = dino_step.eager_dino_step(config, batch)
    ours = 4 * n * vit.embed_dim * (n * (vit.depth - 1) + 1)
    ours += 2 * (n - 1) * vit.patch_size**2 * vit.embed_dim + 2 * config.bottleneck * config.prototypes
    assert total(step.model, "flops") == batch * (dino_step_flops(config) - passes * ours)
    calls = {o: dino_step._logits(o, config, batch) for o in step.model if "sparse_attention" in o.name}
    crops, heads = {2 * batch, 4 * batch}, vit.n_heads
    assert set(calls.values()) == {heads * m * rows for m in crops for rows in (n, n * n)}


def test_products_of_a_step_are_the_useful_ones(toy):
    """All that `step_flops` counts, but what operations of ours compute: attention, the window, the first layer."""
    config, batch = workload.config_of("toy"), 4
    plan = workload.draw_plan(config, 1)
    keep, decode = ({v: getattr(p, which).shape[1] for v, p in plan.items()} for which in ("keep", "masked"))
    n_keys, n_queries = sum(keep.values()), sum(decode.values())
    encoder = sparse_attention_flops((n_keys + 1) ** 2, config.enc_n_heads, config.enc_embed_dim // config.enc_n_heads)
    decoder = sparse_attention_flops(n_keys * n_queries, config.dec_n_heads, config.dec_embed_dim // config.dec_n_heads)
    ours = config.enc_depth * encoder + config.dec_depth * decoder
    for view, n in keep.items():
        positions = n * torch.tensor(config.scale_factor[view]).prod().item()
        axes, patch = len(config.patch_size[view]), torch.tensor(config.patch_size[view]).prod().item()
        wide, narrow = config.enc_conv_chans[0], config.enc_conv_chans[1]
        scale = torch.tensor(config.scale_factor[view]).prod().item()
        ours += 2 * positions * scale * patch * config.in_chans[view] * wide
        ours += config.enc_conv_n_blocks * 2 * 5**axes * (positions * scale * wide + positions * narrow)
    assert total(toy.model, "flops") == batch * (step_flops(config, keep, decode) - 3 * ours)
    assert total(toy.rest, "flops") == 0


def test_faked_gpu_leaves_nothing_behind():
    before = torch.cuda.is_available()
    with pytest.raises(ZeroDivisionError), faked_gpu.faked_gpu():
        assert torch.cuda.is_available() and torch.empty(1, device="cuda").is_cuda
        raise ZeroDivisionError
    assert torch.cuda.is_available() == before
    x = torch.ones(3, requires_grad=True)
    (x * 2).sum().backward()
    assert x.grad.tolist() == [2, 2, 2]


def test_backward_in_python_is_the_engines():
    torch.manual_seed(0)
    config = workload.config_of("toy")
    model = CineMA(config)
    images, plan = workload.random_images(config, 2), workload.draw_plan(config, 2)
    found = []
    for engine in (False, True):
        model.zero_grad()
        loss = model(images, plan).loss
        if engine:
            loss.backward()
        else:
            with python_backward.python_backward():
                loss.backward()
        found.append({name: p.grad for name, p in model.named_parameters()})
    assert found[0].keys() == found[1].keys()
    for name, grad in found[1].items():
        assert (grad is None) == (found[0][name] is None), name
        if grad is not None:
            torch.testing.assert_close(found[0][name], grad, msg=name)
    a, b = (torch.randn(3, requires_grad=True) for _ in range(2))
    with python_backward.python_backward():
        da, db = torch.autograd.grad((a.expand(2, 3) * a).sum(), (a, b), allow_unused=True)
    torch.testing.assert_close(da, 4 * a.detach())
    assert db is None


@pytest.mark.parametrize("decode", [1.0, 0.25])
def test_own_launches(decode):
    step = step_traffic.eager_step("toy", 4, decode)
    calls = {operator.call for operator in step.model if operator.name == "cinema_fast::sparse_attention"}
    assert len(calls) == 2  # encoder and decoder
    for call in calls:
        shape = operation_work.sequences(call)
        (own,), between = step_traffic.own_launches(call, 90)
        rows = attention_time.constants(own.launch)["ROWS"]
        assert own.programs == 4 * shape.heads * -(-shape.queries // rows) and not between
        assert shape.batch == 4 and shape.heads * shape.head_dim in (24, 16)


# machine code


def test_loops_of_a_listing():
    wide, narrow = machine_cycles.loops(LISTING, warps=8)
    assert (wide.instructions, wide.special, wide.flops) == (5, 2, 2 * 2 * 64 * 128 * 16)
    assert (wide.issue, wide.matrix, wide.exponential) == (5 * 8 / 4, 128.0, 2 * 8 * 32 / 16)
    assert wide.serial == 10 + 128
    assert (narrow.instructions, narrow.flops) == (2, 8 * 2 * 16 * 8 * 16)


def code(**changed):
    turns = tuple(machine_cycles.Loop(n, 0, 4096 * n, 4) for n in (100, 40))
    return machine_cycles.MachineCode(
        **{"instructions": 340, "registers": 128, "shared": 50 * 1024, "warps": 4, "loops": turns} | changed
    )


def test_programs_of_a_multiprocessor():
    assert code().programs == 4  # by registers and by shared memory
    assert code(registers=129).programs == 3
    assert code(shared=100 * 1024).programs == 2
    assert code(registers=16, shared=0).programs == 16  # by threads
    assert machine_cycles.MachineCode.from_dict(json.loads(json.dumps(code().as_dict()))) == code()


def test_tutorial_attention(backend, device):
    if backend != "triton":
        pytest.skip("a Triton kernel alone: it runs in the interpreter or on a GPU")
    q, k, v = (torch.randn(2, 128, 32, device=device) for _ in range(3))
    out, lse = torch.empty_like(q), torch.empty(2, 128, device=device)
    with launching("tutorial_attention", q):
        tutorial_attention.tutorial_attention[(2, 2)](
            q, k, v, out, lse, 128, math.log2(math.e) / 32**0.5, ROWS=64, COLS=32, D=32
        )
    logits = (q.double() @ k.double().mT) / 32**0.5
    near = {"rtol": 1e-2, "atol": 1e-2} if device == "cuda" else {"rtol": 1e-5, "atol": 1e-5}  # a GPU rounds to tf32
    torch.testing.assert_close(out.double(), logits.softmax(-1) @ v.double(), **near)
    torch.testing.assert_close(lse.double(), logits.logsumexp(-1) / math.log(2), **near)


def launch(**tile):
    names = ["q_ptr", "ROWS", "TAIL_ROWS", "COLS", "TAIL_COLS", "HEAD"]
    values = {"ROWS": 64, "TAIL_ROWS": 64, "COLS": 4, "TAIL_COLS": 2, "HEAD": (16, 16, "ieee", False)} | tile
    return SimpleNamespace(
        signature=dict.fromkeys(names), constants={(names.index(k),): v for k, v in values.items()},
        kernel=SimpleNamespace(__name__="_attention_fwd"), name="sparse_attention._attention_fwd",
    )  # fmt: skip


def test_attention_cycles():
    shape = attention_time.Sequences(batch=3, queries=100, keys=11, heads=5, head_dim=16)
    cycles, unit = attention_time.attention_cycles(launch(), code(), shape)
    once = 200 + attention_time.WAITS * attention_time.ROUND_TRIP / 4
    # two programs a head, two whole turns of 200 cycles, two for the three keys left over
    assert cycles == 3 * 5 * 2 * (once + 2 * 200 + 2 * 80)
    assert unit == {"issue": 100, "matrix": 100, "exponential": 0}
    tails = tuple(machine_cycles.Loop(n, 0, 4096 * n, 4) for n in (100, 40, 10, 5))
    cycles, _ = attention_time.attention_cycles(launch(TAIL_ROWS=48), code(instructions=355, loops=tails), shape)
    once = 100 + attention_time.WAITS * attention_time.ROUND_TRIP / 4
    assert cycles == 3 * 5 * (2 * once + 2 * 200 + 2 * 80 + 2 * 20 + 2 * 10)
    with pytest.raises(RuntimeError, match="expected 4 loops with matrix products"):
        attention_time.attention_cycles(launch(TAIL_ROWS=16), code(), shape)


# time


def test_ranges_hold_what_is_expected():
    given = step_cost.assumptions(4.8e12, 122.0)
    for name in given.__dataclass_fields__:
        value = getattr(given, name)
        assert min(value.best, value.worst) <= value.expected <= max(value.best, value.worst), name
    middle, low, high = step_cost.spread(lambda at: 1 / at.copy_rate + at.kernel, given)
    assert low < middle < high
    assert middle == pytest.approx(1 / 4.0e12 + 2.5e-6)


def test_host_and_device():
    at = step_cost.rates(step_cost.assumptions(4.8e12, 122.0))
    tiny, large = step_cost.Work(4), step_cost.Work(4e9, flops=1.0)
    assert step_cost.device_seconds(large, at) == pytest.approx(1e-3 + 2.5e-6)
    few = Counter({tiny: 1000})
    assert step_cost.step_seconds(few, at, "eager") == pytest.approx(6e-3)
    assert step_cost.step_seconds(few, at, "compiled") == pytest.approx(4e-3)
    assert step_cost.step_seconds(few, at, "graph") == pytest.approx(1.5e-3, rel=1e-3)
    assert step_cost.step_seconds(Counter({large: 9}), at, "eager") == pytest.approx(9.02e-3, rel=1e-3)


# what is committed


def test_sections_are_read_as_they_were_written(tmp_path):
    path, rows = tmp_path / "predictions.json", [{"op": "mm", "us": 1.5}, {"op": "add", "us": 2.0, "cycles": [3, 4]}]
    contents = {"command": "a", "counted": {"launches": 1}, "kernels": rows, "code": {"k": {"loops": []}}, "steps": []}
    assert predictions_results.read_predictions(path) == {}
    predictions_results.write_predictions(path, contents)
    assert predictions_results.read_predictions(path) == contents
    assert '["mm",1.5,null],\n["add",2.0,[3,4]]\n' in path.read_text()


def test_committed_predictions_are_those_of_the_tree(committed):
    assert predict.check(committed) == []


def test_check_tells_what_changed(committed, monkeypatch):
    def faults(**other):
        return predict.check(committed | other)

    found = faults(counted=committed["counted"] | {"launches": 1}, versions={**committed["versions"], "torch": "0"})
    assert [fault[:16] for fault in found] == ["a step of toy wa", "docs/reference/p"]
    assert all(fault.endswith(predict.COMMAND) for fault in found)
    codes = committed["machine_code"]
    key = next(key for key, row in codes.items() if row["kernel"] == "sparse_attention._attention_fwd")
    (fault,) = faults(machine_code=codes | {key: codes[key] | {"stages": 9}})
    assert fault.startswith("sparse_attention._attention_fwd is launched otherwise")
    slower = [row | {"us": 2 * row["us"]} for row in committed["kernels"][:1]] + committed["kernels"][1:]
    assert any(fault.startswith("another prediction of NVIDIA H200") for fault in faults(kernels=slower))
    monkeypatch.setattr("attention_time.ROUND_TRIP", 8000)
    monkeypatch.setattr("operation_work.ROUND_TRIP", 8000)
    assert any("sparse_attention" in fault for fault in faults())
    monkeypatch.setattr("step_cost.PUBLISHED_CLOCK", 1e9)
    assert any(fault.startswith("other assumptions of NVIDIA H100") for fault in faults())


def test_committed_steps(committed):
    rows = {(r["gpu"], r["batch"], r["decode_ratio"], r["mode"]): r for r in committed["steps"]}
    assert len(rows) == len(committed["steps"]) == 2 * 2 * 2 * 4
    for (gpu, batch, ratio, mode), row in rows.items():
        assert row.keys() >= {
            "gpu", "preset", "batch", "dtype", "mode", "decode_ratio", "launches", "gemm_flops", "bytes", "ms",
            "ms_low", "ms_high", "studies_per_s",
        }  # fmt: skip
        assert row["ms_low"] < row["ms"] < row["ms_high"]
        assert row["studies_per_s"] == pytest.approx(1e3 * batch / row["ms"], rel=0.01)
        eager = rows[gpu, batch, ratio, "eager"]
        assert row["bytes"] <= eager["bytes"] and row["launches"] <= eager["launches"] and row["ms"] <= eager["ms"]
        assert rows[gpu, batch, 0.25, mode]["ms"] <= rows[gpu, batch, 1.0, mode]["ms"]
        assert rows["NVIDIA H200", batch, ratio, mode]["ms"] <= rows["NVIDIA H100 80GB HBM3", batch, ratio, mode]["ms"]


def test_committed_kernels(committed):
    names = {(r["gpu"], r["op"], r["pass"], r["shape"], r["dtype"]) for r in committed["kernels"]}
    assert len(names) == len(committed["kernels"])
    for row in committed["kernels"]:
        assert 0 < row["us_low"] < row["us"] < row["us_high"], row
    for name, operation in OPERATIONS.items():
        wanted = set(operation.passes if list(operation.calls()) else ())  # of Triton's kernels
        assert {p for _, op, p, _, _ in names if op == name} == wanted


@pytest.mark.slow
@pytest.mark.skipif(not HAS_DISASSEMBLER, reason="this Triton comes without cuobjdump")
def test_step_through_inductor():
    traffic = step_work.compiled_step("toy", 4, 1.0)
    step = step_traffic.eager_step("toy", 4, 1.0)
    traffic = step_work.recalled(json.loads(json.dumps(step_work.remembered(traffic))))
    work = step_work.StepWork(step, traffic, operation_work.Compiler({}))
    eager, compiled = (sum(parts.values(), Counter()) for parts in (work.eager, work.compiled))
    for what in ("n_bytes", "launches"):
        assert 0 < total(compiled, what) < total(eager, what)
    assert total(compiled, "flops") == total(eager, "flops") == total(step.model, "flops")
