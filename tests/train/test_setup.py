"""Where a run computes, and in which precision, when it may choose."""

import pytest
import torch

from cinema_fast.train.setup import pick_precision


@pytest.mark.parametrize(
    ("has", "dtype"),
    [({"amx_bf16": True, "avx512_bf16": True}, torch.bfloat16), ({"avx512_bf16": True}, torch.float32),
     ({"avx512_bf16": True, "amx_bf16": False, "cpu_name": "Intel(R) Xeon(R) Processor"}, torch.float32),
     ({"avx512_bf16": True, "amx_bf16": False, "cpu_name": "AMD EPYC"}, torch.bfloat16),
     ({"avx512_bf16": False, "cpu_name": "AMD Ryzen 7 5800X"}, torch.float32), ({}, torch.float32)],
)  # fmt: skip
def test_bf16_on_a_cpu_only_where_it_is_faster(monkeypatch, has, dtype):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has, raising=False)
    cpu = torch.device("cpu")
    assert pick_precision("auto", cpu) == dtype
    assert (pick_precision("bf16", cpu), pick_precision("fp32", cpu)) == (torch.bfloat16, torch.float32)
    monkeypatch.delattr(torch.cpu, "get_capabilities")  # as in an older PyTorch
    assert pick_precision("auto", cpu) == torch.float32
