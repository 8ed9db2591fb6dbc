"""docs/reference/predictions.md, from benchmarks/results/predictions.json."""

from attention_time import MULTIPROCESSORS, ROUND_TRIP, WAITS

from cinema_fast.models.flops import H100_BF16

GOALS = {1.0: 2.32, 0.25: 1.55}  # ms a study of cinema-base by decode ratio: 430 and 646 studies/s
IMAGES_GOAL = 980  # a second, of self-distillation: 40 % of H100_BF16 at the public code's 404 GFLOP an image
HEADLINE = "NVIDIA H200"
ONE_PRODUCT = 784e12  # FLOP/s that 8192^3 in bf16 reaches on such a card


def document(contents: dict) -> str:
    """Markdown; without dates and commits, so that it changes where a figure does."""
    versions = ", ".join(f"{name} {contents['versions'][name]}" for name in ("torch", "triton"))
    lines = [
        "# Predictions",
        "",
        "**Nothing here was measured on a GPU.** A model predicts these figures, for comparison with measurements.",
        f"Written by `{contents['command']}` ({versions}) from",
        "`benchmarks/results/predictions.json`; `--check` says whether both are up to date.",
        "",
        "A step is counted operator by operator on fake CUDA tensors (eager), or as the code that Inductor writes for",
        "a faked sm_90 (compiled): launches, bytes (each tensor once) and FLOPs of matrix products. A kernel takes a",
        "fixed time plus the larger of bytes over the copy rate and FLOPs over the rate of matrix products; attention",
        "and patch_embed take the cycles of their machine code. A step takes the time of the device or the time in",
        "which the host launches it, whichever is longer. For the ranges, each assumption is set to its best and worst",
        "value alone, and the differences are added in quadrature.",
        "",
        f"Not in the ranges: programs are assumed to spread evenly over {MULTIPROCESSORS} multiprocessors, without a",
        "half-empty last wave (up to a quarter of the shortest launches); a program waits "
        f"{WAITS} times for memory, {ROUND_TRIP} cycles",
        "each; small matrix products reach the rate of large ones; attention's calibration, from one forward pass,",
        "holds for its backward pass and for patch_embed. The predictions are for the default tiles. If",
        "`kernels/tuned/` has a table for a GPU, measurements there use other tiles, or another backend.",
    ]
    for section in (_steps, _components, _self_distillation, _attention, _kernels, _assumptions, _goals):
        lines += ["", *section(contents)]
    return "\n".join(lines) + "\n"


def _table(head: str, rows) -> list[str]:
    columns = head.count("|") + 1
    return [f"| {head} |", "|" + "---|" * columns, *(f"| {' | '.join(map(str, row))} |" for row in rows)]


def _steps(contents: dict) -> list[str]:
    rows = (
        (r["gpu"], r["batch"], f"{r['decode_ratio']:g}", r["mode"], r["launches"], f"{r['bytes'] / 1e9:.0f}",
         f"{r['gemm_flops'] / 1e12:.2f}", f"{r['host_ms']:g}", f"**{r['ms']:g}** ({r['ms_low']:g}-{r['ms_high']:g})",
         f"{r['ms_a_study']:g}", f"{r['studies_per_s']:g}")
        for r in contents["steps"]
    )  # fmt: skip
    head = "GPU | batch | decoded | mode | launches | GB | GEMM TFLOP | host ms | ms | ms a study | studies/s"
    return [
        "## A training step of cinema-base, bf16", "",
        "host ms: time to launch the step on the host, in parallel with the device; the longer one decides.", "",
        *_table(head, rows),
    ]  # fmt: skip


def _of(contents: dict, **wanted) -> dict:
    return next(r for r in contents["steps"] if all(r[k] == v for k, v in wanted.items()))


def _components(contents: dict) -> list[str]:
    batch, modes = max(r["batch"] for r in contents["steps"]), ("eager", "graph")
    columns = [(ratio, mode) for ratio in GOALS for mode in modes]
    rows = [_of(contents, gpu=HEADLINE, batch=batch, decode_ratio=r, mode=m) for r, m in columns]
    parts = [row["device_ms_a_study_by_component"] for row in rows]
    head = "part | " + " | ".join(f"{ratio:g} decoded, {mode}" for ratio, mode in columns)
    table = _table(head, ((name, *(f"{part[name]:g}" for part in parts)) for name in parts[0]))
    return [f"## Time by component: {HEADLINE}, batch {batch}, ms a study", "", *table]


def _self_distillation(contents: dict) -> list[str]:
    rows, found = [], contents["self_distillation"]
    for r in found:
        mfu = r["useful_flops"] / (r["ms"] / 1e3) / H100_BF16
        ms = f"**{r['ms']:g}** ({r['ms_low']:g}-{r['ms_high']:g})"
        rows.append((r["gpu"], r["batch"], r["mode"], r["launches"], f"{r['bytes'] / 1e9:.0f}",
                     f"{r['useful_flops'] / 1e12:.1f}", f"{r['host_ms']:g}", ms, f"{r['images_per_s']:g}",
                     f"{mfu:.0%}"))  # fmt: skip
    one = {r["mode"]: r["device_ms_by_component"] for r in found if r["gpu"] == HEADLINE}
    cells = ((name, f"{ms:g}", f"{one['graph'][name]:g}") for name, ms in one["eager"].items())
    head = "GPU | images | mode | launches | GB | useful TFLOP | host ms | ms | images/s | MFU"
    return [
        "## A training step of cmrfm-small8 (DINO), bf16", "",
        f"Not measured on a GPU. The goal is {IMAGES_GOAL} images/s. Cutting the crops is not counted. Attention takes",
        "the cycles of its machine code for 577 tokens, in proportion to the logits; patch_embed and prototype_loss",
        "have bytes and FLOPs alone. MFU is of the useful FLOPs of `models/flops.py`, which leave out what the public",
        "code computes in its last block and never reads.", "",
        *_table(head, rows), "", f"Time by component, {HEADLINE}, ms:", "",
        *_table("part | eager | graph", cells),
    ]  # fmt: skip


def _attention(contents: dict) -> list[str]:
    rows = []
    for code in contents["machine_code"].values():
        kernel = code["kernel"].split(".")[1]
        passed = dict(part.split("=", 1) for part in _split(code["passed"]))
        if "ROWS" not in passed or not {"D", "HEAD"} & passed.keys():
            continue
        loop = max(code["loops"], key=lambda loop: loop["flops"])
        logits = int(passed["ROWS"]) * int(passed["COLS"]) / 1000
        width = int(passed["D"] if "D" in passed else passed["HEAD"].strip("(").split(",")[0])
        issue, matrix = loop["instructions"] * code["warps"] / 4, loop["flops"] / 4096
        exponential = loop["special"] * code["warps"] * 2
        cycles = [f"{x / logits:.0f}" for x in (issue, matrix, exponential, max(issue + matrix, exponential))]
        tile = f"{passed['ROWS']}x{passed['COLS']} w{code['warps']}"
        rows.append((kernel.removeprefix("_"), width, tile, code["registers"], f"{code['shared'] / 1024:.0f}",
                     code["programs"], loop["instructions"], *cycles))  # fmt: skip
    head = "kernel | head dim | tile | registers | KiB | programs | loop | issue | matrix | exponential | in a row"
    return [
        "## Attention's machine code (sm_90, bf16)", "",
        "Cycles of a multiprocessor per 1000 logits: to issue the instructions of the loop over whole tiles, for the",
        "matrix units, for the special-function units, and in a row: issue plus matrix, which determines the time.",
        "tutorial_attention is a simple tutorial kernel compiled with our tile: no tails, no strides, forward only.",
        "programs: how many share a multiprocessor; loop: instructions in the loop.", "",
        *_table(head, sorted(set(rows), key=lambda row: (row[1], row[0], row[2:]))),
    ]  # fmt: skip


def _split(passed: str) -> list[str]:
    """Arguments in "A=1, B=(2, 3), C=4"."""
    parts: list[str] = []
    for piece in passed.split(", "):
        if "=" in piece:
            parts.append(piece)
        else:
            parts[-1] += f", {piece}"
    return parts


def _kernels(contents: dict) -> list[str]:
    gpus = list(contents["assumptions"])
    by_row: dict[tuple, dict] = {}
    for r in contents["kernels"]:
        by_row.setdefault((r["op"], r["pass"], r["shape"], r["dtype"]), {})[r["gpu"]] = r
    rows = (
        (*row, *(f"{found[g]['us']:g} ({found[g]['us_low']:g}-{found[g]['us_high']:g})" for g in gpus))
        for row, found in by_row.items()
    )
    return [
        "## Kernels, us", "",
        "For sample_mask and augment_images the model has only launches and bytes, not their arithmetic.", "",
        *_table("operation | pass | shape | dtype | " + " | ".join(gpus), rows),
    ]  # fmt: skip


def _assumptions(contents: dict) -> list[str]:
    lines = ["## Assumptions"]
    for gpu, given in contents["assumptions"].items():
        rows = (
            (name, f"{a['expected']:g} {a['unit']}".strip(), f"{a['best']:g}", f"{a['worst']:g}", a["source"])
            for name, a in given.items()
        )
        lines += ["", f"### {gpu}", "", *_table("assumption | expected | best | worst | source", rows)]
    return lines


def _goals(contents: dict) -> list[str]:
    batch = max(r["batch"] for r in contents["steps"])
    lines = [f"## Goals for the {HEADLINE}, batch {batch}", ""]
    for ratio, goal in GOALS.items():
        row = _of(contents, gpu=HEADLINE, batch=batch, decode_ratio=ratio, mode="graph")
        parts, now = row["device_ms_a_study_by_component"], row["ms_a_study"]
        missing = now - goal
        products = parts["matrix products"]
        largest = max((name for name in parts if name != "matrix products"), key=parts.get)
        if missing <= 0:
            lines.append(f"- {ratio:g} decoded: {goal} ms a study; the compiled graph reaches it with {now:g} ms.")
            continue
        lines.append(
            f"- {ratio:g} decoded: {goal} ms a study; the compiled graph takes {now:g} ms "
            f"({row['ms_low'] / batch:.2f}-{row['ms_high'] / batch:.2f}), {missing:.2f} ms too many. Matrix products "
            f"take {products:g} ms, which leaves {goal - products:.2f} ms for the other parts. These take "
            f"{now - products:.2f} ms, so they must become {missing / (now - products):.0%} shorter. The largest of "
            f"them is {largest} ({parts[largest]:g} ms). "
            f"At the {ONE_PRODUCT / 1e12:.0f} TFLOP/s of one large product, matrix products would take "
            f"{1e3 * row['gemm_flops'] / batch / ONE_PRODUCT:.2f} ms."
        )
    return lines
