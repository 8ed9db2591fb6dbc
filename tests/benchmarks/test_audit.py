"""The audit of machine code: what it reads and finds wrong; that the committed results are those of the tree."""

import importlib.util
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="the audit compiles Triton kernels")
audit, audit_code, audit_launches = map(importlib.import_module, ("audit", "audit_code", "audit_launches"))
audit_document, audit_results = map(importlib.import_module, ("audit_document", "audit_results"))
read_results = audit_results.read_results
faults = audit.faults
Code = importlib.import_module("cinema_fast.kernels.registry").Code
EXPECTED = audit.expected()
HAS_DISASSEMBLER = (audit_code.TOOLS / "cuobjdump").exists()
pytestmark = pytest.mark.skipif(not HAS_DISASSEMBLER, reason="this Triton comes without cuobjdump")
# two kernels as cuobjdump lists them, shortened: one that spills, one with matrix units and copies past the registers
LISTING = """
Resource usage:
 Function narrow:
  REG:32 STACK:24 SHARED:0 LOCAL:8 CONSTANT[0]:536 TEXTURE:0 SURFACE:0 SAMPLER:0
 Function gemm:
  REG:168 STACK:0 SHARED:1536 LOCAL:0 CONSTANT[0]:560 TEXTURE:0 SURFACE:0 SAMPLER:0

\tcode for sm_90a

\t\tFunction : narrow
\t.headerflags\t@"EF_CUDA_SM90"
        /*0000*/                   LDC R1, c[0x0][0x28] ;                     /* 0x00000a00ff017b82 */
                                                                              /* 0x000fe20000000800 */
        /*0010*/                   STL.64 [R1+0x8], R2 ;                      /* 0x0000080201007387 */
        /*0020*/              @!P0 LDL R7, [R1] ;                             /* 0x0000000001077983 */
        /*0030*/               @P3 LDG.E.U8 R4, desc[UR4][R2.64] ;            /* 0x0000000402047981 */
        /*0040*/                   LDG.E.CONSTANT R5, desc[UR4][R2.64] ;      /* 0x0000000402057981 */
        /*0050*/             @!UP0 UIADD3 UR4, UR4, 0x1, URZ ;                /* 0x0000000104047890 */
        /*0060*/                   STG.E.U16 desc[UR4][R2.64], R5 ;           /* 0x0000000502007986 */
\t\t..........

\t\tFunction : gemm
\t.headerflags\t@"EF_CUDA_SM90"
        /*0000*/                   LDGSTS.E.BYPASS.128 [R4], desc[UR6][R2.64] ; /* 0x0000000002047fae */
        /*0010*/                   LDG.E.64.STRONG.GPU R4, desc[UR4][R2.64] ; /* 0x0000000402047981 */
        /*0020*/                   HGMMA.64x64x16.F32.BF16 R24, gdesc[UR8], R24 ; /* 0x00e00000081879f0 */
        /*0030*/                   WARPGROUP.DEPBAR.LE gsb0, 0x0 ;            /* 0x00008000000079c5 */
        /*0040*/                   HMMA.16816.F32.BF16 R4, R8, R6, R4 ;       /* 0x000000060804723c */
        /*10050*/                  STG.E.128 desc[UR4][R2.64], R4 ;           /* 0x0000000402007986 */
\t\t..........
"""


def test_listing():
    found = audit_code.parse(LISTING, 90, dynamic_shared=4096)
    assert found["narrow"] == audit_code.Code(
        registers=32, shared=4096, local=32, spill_loads=1, spill_stores=1, matrix={}, loads={"4": 1, "1": 1},
        stores={"2": 1},
    )  # fmt: skip
    assert found["gemm"] == audit_code.Code(
        registers=168, shared=4096 + 512, local=0, spill_loads=0, spill_stores=0, matrix={"HGMMA": 1, "HMMA": 1},
        loads={"16": 1, "8": 1}, stores={"16": 1},
    )  # fmt: skip


def test_mnemonics():
    sizes = {"LDG.E": 4, "LDG.E.S8.CONSTANT": 1, "STG.E.U16": 2, "LDG.E.ENL2.256": 32, "STG.E.EF.128": 16}
    assert {m: audit_code.access_bytes(m) for m in sizes} == sizes
    assert all(map(audit_code.MATRIX.fullmatch, ("HMMA", "HGMMA", "IMMA", "QGMMA", "DMMA", "UTCHMMA", "UTCQMMA")))
    assert not any(audit_code.MATRIX.fullmatch(unit) for unit in ("UTCBAR", "FFMA", "HFMA2", "WARPGROUP"))


def entry(cases=("cinema-base bf16",), arch=90, **code):
    clean = {
        "registers": 64, "shared": 0, "local": 0, "spill_loads": 0, "spill_stores": 0, "matrix": {"HMMA": 4},
        "loads": {"16": 2, "4": 1}, "stores": {"16": 2},
    }  # fmt: skip
    passed = {"types": "x_ptr *bf16:16", "constants": "GRAD=True, BLOCK=16"}
    return {
        "kernel": "op._kernel", "source": "0", "arch": arch, "compiler": "triton 3.0", "cases": list(cases),
        "passed": passed, "code": clean | code,
    }  # fmt: skip


ALL = {"op._kernel": Code(True, True, True, "a GEMM")}


@pytest.mark.parametrize(
    ("arch", "code", "said"),
    [
        (90, {"spill_stores": 7, "spill_loads": 9, "local": 32}, "spills: 7 stores and 9 loads, 32 bytes a thread"),
        (80, {"shared": 164 * 1024}, "167936 bytes of shared memory, the limit is 166912"),
        (100, {"shared": 227 * 1024 + 1}, "232449 bytes of shared memory, the limit is 232448"),
        (90, {"matrix": {}}, "no instruction of the matrix units"),
        (90, {"loads": {"8": 4, "1": 2}}, "no 16-byte loads of global memory: 4 of 8 bytes, 2 of 1 bytes"),
        (90, {"stores": {}}, "no 16-byte stores of global memory: none at all"),
    ],
)
def test_fault_names_kernel_shape_and_architecture(arch, code, said):
    assert faults(entry(arch=arch, **code), ALL) == [f"op._kernel, cinema-base bf16, sm_{arch}, triton 3.0: {said}"]
    (line,) = faults(entry(arch=arch, **code), {})[-1:]
    assert line.endswith("its operation does not say what its code must hold")


def test_what_is_not_a_fault():
    narrow = {"loads": {"2": 4}, "stores": {"2": 4}}
    for arch, limit in ((80, 163), (90, 227), (100, 227)):
        assert faults(entry(arch=arch, shared=limit * 1024), ALL) == []
    assert faults(entry(cases=["awkward bf16"], **narrow), ALL) == []
    assert len(faults(entry(cases=["awkward bf16", "cinema-base bf16"], **narrow), ALL)) == 2
    float32 = entry(matrix={})
    float32["passed"]["types"] = "x_ptr *fp32:16"
    assert faults(float32, ALL) == []
    by_constant = {"op._kernel": Code(False, False, "GRAD", "")}
    assert len(faults(entry(**narrow), by_constant)) == 1
    forward = entry(**narrow)
    forward["passed"]["constants"] = "GRAD=False"
    assert faults(forward, by_constant) == []


KERNELS = """
import triton
import triton.language as tl
@triton.jit
def _double(x):
    return x * 2
@triton.jit
def _copy(x_ptr, out_ptr, stride, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_ptr + at, _double(tl.load(x_ptr + at * stride)))

@triton.jit
def _product(x_ptr, out_ptr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    x = tl.load(x_ptr + at)
    tl.store(out_ptr + at, tl.dot(x, x))
"""
WIDE = Code(False, True, True, "a copy")


def load_kernels(folder: Path, text: str):
    """A module of the given source, as kernels/*.py are."""
    path = folder / f"audited{len(list(folder.iterdir()))}.py"
    path.write_text(text)
    spec = importlib.util.spec_from_file_location("audited", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def recorded(call):
    return audit_launches.record([audit_launches.Case("audited", "small bf16", call)], 90)


def copy_launch(kernel, stride):
    x, out = torch.empty(1024 * stride, dtype=torch.bfloat16), torch.empty(1024, dtype=torch.bfloat16)
    return recorded(lambda: kernel[(1,)](x, out, stride, BLOCK=1024, num_warps=4))


@pytest.fixture
def module(tmp_path):
    return load_kernels(tmp_path, KERNELS)


def run(tmp_path, launches, expected):
    return audit.audit(launches, tmp_path, tmp_path / "audit.json", tmp_path / "audit.md", expected)


def test_bad_kernels_fail_and_unchanged_ones_are_not_compiled_again(tmp_path, module, monkeypatch):
    expected = {"audited._copy": WIDE, "audited._product": Code(True, False, False, "a GEMM")}
    good = copy_launch(module._copy, 1)
    assert run(tmp_path, good, expected) == ([], 1)
    x = torch.empty(128 * 128, dtype=torch.bfloat16)
    # the accumulators alone are 128 registers
    spilling = recorded(lambda: module._product[(1,)](x, x, BLOCK=128, num_warps=4, maxnreg=96))
    bad = good | copy_launch(module._copy, 3) | spilling
    wrong, compiled = run(tmp_path, bad, expected)
    assert compiled == 2
    scalar, spills = wrong
    where = f"small bf16, sm_90, {audit.TRITON}"
    assert scalar.startswith(f"audited._copy, {where}: no 16-byte loads of global memory: 8 of 2 bytes")
    assert spills.startswith(f"audited._product, {where}: spills: ")
    document = (tmp_path / "audit.md").read_text()
    assert all(f"- {fault}" in document for fault in wrong) and "| audited._copy | 90 | 2 |" in document

    monkeypatch.setattr(audit_code, "compile_launch", lambda launch: pytest.fail(f"{launch.name} was known"))
    assert run(tmp_path, bad, expected) == (wrong, 0)
    assert run(tmp_path, good, expected) == ([], 0)
    assert read_results(tmp_path / "audit.json").keys() == good.keys()  # others are forgotten


def test_another_version_of_triton_stays_until_its_launches_change(tmp_path, module):
    expected = {"audited._copy": WIDE}
    good, strided = copy_launch(module._copy, 1), copy_launch(module._copy, 3)
    run(tmp_path, good | strided, expected)
    results = tmp_path / "audit.json"
    ours = read_results(results).values()
    theirs = [e | {"compiler": "triton 1.10.2", "cases": ["before"]} for e in ours]
    for e in theirs:
        e["code"] = e["code"] | {"registers": e["code"]["registers"] + 2, "local": 8}
    audit_results.write_results(results, [*ours, *theirs])

    wrong, compiled = run(tmp_path, good, expected)
    (kept,) = (e for e in read_results(results).values() if e["compiler"] != audit.TRITON)
    assert kept["passed"] == next(iter(good.values())).specialisation and kept["cases"] == ["small bf16"]
    assert compiled == 0 and [w.split(": ")[0] for w in wrong] == ["audited._copy, small bf16, sm_90, triton 1.10.2"]
    document = (tmp_path / "audit.md").read_text()
    registers = kept["code"]["registers"]
    assert f"| audited._copy | 90 | 1 | {registers - 2}-{registers} |" in document
    assert f"## Differences between triton 1.10.2 and {audit.TRITON}" in document
    assert "| audited._copy | 90 | 1 | 1: -2 |  |  |  |  |  |  |" in document

    changed = load_kernels(tmp_path, KERNELS.replace("x * 2", "x * 3"))
    assert run(tmp_path, copy_launch(changed._copy, 1), expected) == ([], 1)
    assert "triton 1.10.2" not in results.read_text() + (tmp_path / "audit.md").read_text()


def test_results_are_read_as_they_were_written(tmp_path):
    passed = entry()["passed"] | {"warps": 4, "stages": 2}
    triton = [entry(arch=arch) | {"passed": passed, "digest": f"d{arch}"} for arch in (80, 90)]
    cuda = entry(cases=["op.cu"]) | {"passed": {}, "digest": "", "compiler": "nvcc 13.0"}
    path = tmp_path / "audit.json"
    assert read_results(path) == {}
    audit_results.write_results(path, [*triton, cuda])
    assert list(read_results(path).values()) == [*triton, cuda]
    text = path.read_text()
    audit_results.write_results(path, [cuda, *reversed(triton)])
    assert path.read_text() == text and text.count("BLOCK=16") == 1


def test_what_differs_is_counted():
    def made(compiler, number, **code):
        made = entry(**code) | {"compiler": compiler}
        return made | {"passed": made["passed"] | {"warps": number}}

    old = [made("triton 3.9", n) for n in range(4)]
    new = [
        made("triton 3.10", 0, registers=60, loads={"16": 2}, spill_loads=3),
        made("triton 3.10", 1, registers=72, loads={"16": 1, "8": 2, "4": 1}, shared=1536),
        made("triton 3.10", 2, matrix={"HMMA": 2, "HGMMA": 2}, stores={}),
    ]
    lines = audit_document.markdown([*new, *old], [], ALL).splitlines()
    assert "## Differences between triton 3.9 and triton 3.10" in lines  # the older first, by number
    row = "| op._kernel | 90 | 3 | 2: -4 to +8 | 1: +3 |  | 1: +1.5 |"
    assert f"{row} 1: HGMMA, HMMA | 2: 16, 8, 4 | 1: 16 |" in lines
    cells = "0-2 HGMMA, 2-4 HMMA | 1-2 x 16, 0-2 x 8, 0-1 x 4 | 0-2 x 16"
    assert f"| op._kernel | 90 | 4 | 60-72 | 0-1.5 | {cells} |" in lines
    assert "Equal: op._kernel." in audit_document.markdown([old[0], made("triton 3.10", 0)], [], ALL)


def test_source_hash_follows_what_the_kernel_calls_and_nothing_else(tmp_path, module):
    known = audit_launches.source_hash(module._copy)
    moved = load_kernels(tmp_path, '"""Lines above."""\n' + KERNELS.replace("tl.dot(x, x)", "x"))
    assert audit_launches.source_hash(moved._copy) == known
    changed = load_kernels(tmp_path, KERNELS.replace("x * 2", "x * 3"))
    assert audit_launches.source_hash(changed._copy) != known
    assert copy_launch(changed._copy, 1).keys().isdisjoint(copy_launch(module._copy, 1))
    assert audit_launches.kernels_of([module]).keys() == {"audited._copy", "audited._product"}


@pytest.mark.skipif(not audit_code.nvcc(), reason="no nvcc on PATH")
def test_cuda_sources(tmp_path, monkeypatch):
    assert audit.cuda_entries(tmp_path, {}) == {}
    body = "{ int i = blockIdx.x * blockDim.x + threadIdx.x; x[i] = y[i]; }"
    copies = (f'extern "C" __global__ void copy{n}(float{n}* x, const float{n}* y) {body}\n' for n in ("", 4))
    (tmp_path / "copy.cu").write_text("".join(copies))
    entries = audit.cuda_entries(tmp_path, {})
    found = sorted((e["kernel"], e["arch"]) for e in entries.values())
    assert found == [("copy.copy", 80), ("copy.copy", 90), ("copy.copy4", 80), ("copy.copy4", 90)]
    expected = {"copy.copy": WIDE, "copy.copy4": WIDE}
    wrong = [fault for e in entries.values() for fault in faults(e, expected)]
    assert {w.split(",")[0] for w in wrong} == {"copy.copy"} and len(wrong) == 4
    with monkeypatch.context() as patch:
        patch.setattr(audit_code, "compile_cuda", lambda source, arch: pytest.fail("it was known"))
        assert audit.cuda_entries(tmp_path, entries) == entries
        patch.setattr(audit_code, "nvcc", lambda: None)
        assert audit.cuda_entries(tmp_path, entries) == entries
        with pytest.raises(RuntimeError, match=r"no nvcc on PATH to compile copy.cu for sm_80"):
            audit.cuda_entries(tmp_path, {})
    (tmp_path / "copy.cuh").write_text("// a header changes what is compiled")
    assert audit.cuda_entries(tmp_path, entries).keys().isdisjoint(entries)
    (tmp_path / "copy.cu").write_text("not C")
    with pytest.raises(RuntimeError, match=r"nvcc cannot compile copy.cu for sm_80"):
        audit.cuda_entries(tmp_path, entries)


@pytest.fixture(scope="module")
def launches():
    cases = audit_launches.cases()
    return {k: launch for arch in audit.ARCHS for k, launch in audit_launches.record(cases, arch).items()}


def test_committed_results_are_those_of_the_tree(launches):
    kernels = audit_launches.kernels_of(audit_launches.kernel_modules())
    assert kernels.keys() == {launch.name for launch in launches.values()}
    committed = read_results(audit.RESULTS)
    names = {e["kernel"] for e in committed.values()}
    assert EXPECTED.keys() <= names | {name.partition(".")[0] for name in names}
    versions = audit_document.tritons(committed.values())
    assert len(versions) == 2, "run `make env-gpu audit`: .venv's Triton and the GPU machine's"

    def audited(entries):
        return {(e["kernel"], e["source"], e["arch"], case) for e in entries for case in e["cases"]}

    current = audited(launch.entry for launch in launches.values())
    for version in versions:
        entries = [e for e in committed.values() if e["compiler"] == version]
        assert audited(entries) == current, f"{version}: run `make env-gpu audit`"
    if audit.TRITON in versions:
        assert committed.keys() >= launches.keys(), "run `make audit`"
    cuda = {(s.stem, audit.cuda_hash(s), a) for s in audit.CUDA_SOURCES.glob("*.cu") for a in audit_code.CUDA_ARCHS}
    others = [e for e in committed.values() if e["compiler"] not in versions]
    assert {(e["kernel"].split(".")[0], e["source"], e["arch"]) for e in others} == cuda, "run `make audit`"
    wrong = [fault for e in committed.values() for fault in faults(e, EXPECTED)]
    document = audit_document.markdown(list(committed.values()), wrong, EXPECTED)
    assert audit.DOCUMENT.read_text() == document and not wrong


@pytest.mark.long
def test_whole_audit(tmp_path, launches):
    """Everything compiled again: nothing is wrong with it."""
    files = tmp_path / "audit.json", tmp_path / "audit.md"
    wrong, compiled = audit.audit(launches, audit.CUDA_SOURCES, *files, EXPECTED)
    assert not wrong and compiled >= len(launches)
