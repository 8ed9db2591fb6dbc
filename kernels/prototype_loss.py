"""prototype_loss: the loss of DINO self-distillation, from bottleneck outputs and prototypes; no logits are stored.

    q = softmax((teacher @ teacher_prototypes.T - centre) / teacher_temp)
    p = softmax(student @ prototypes.T / student_temp)
    loss = mean over pairs (teacher's global crop i, student's crop j != i) and over b of -sum_k q_i[b, k] log p_j[b, k]

Caron et al., "Emerging properties in self-supervised vision transformers", ICCV 2021, section 3.1 and algorithm 1. Rows
are crop after crop, j * B + b, the two global crops first; n crops make 2 n - 2 pairs.

Logits are linear in the bottleneck, so that no row meets another over the K columns: with w_k the prototypes, c_j the
number of teacher's crops that crop j is compared with (1 for a global one, 2 for a local one), and sums over i != j

    pairs * B * loss = sum_j c_j lse(s_j) - sum_i <sum_k q_ik w_k, sum_j z_j> / student_temp
    d z_j = (c_j sum_k p_jk w_k - sum_i sum_k q_ik w_k) / (student_temp * pairs * B)
    d w_k = (sum_j c_j p_jk z_j - sum_i q_ik sum_j z_j) / (student_temp * pairs * B)

Kernels. Forward: a program owns a tile of rows and walks every n-th tile of columns with a running maximum and sum, as
attention does with prototypes as keys and values; a second kernel adds up what the programs found, in a fixed order;
a third gives the figures. The student's gradient comes with it, and is scaled in the backward. Backward: a program
owns a tile of prototypes, computes p and q again from the saved sums, and walks all rows. Every sum has one owner and a
fixed order, so the bits are the same every time. p and q are rounded to the products' dtype one by one, but logits stay
float32, which in 16 bits matters more.

Memory beside inputs and gradients: PROGRAMS tiles of float32 sums, 17 MiB at width 256 whatever B and K are; inputs of
another dtype than the products' are copied. Bytes: rows, prototypes and centre are read by each pass, and the two
gradients written. At 768 rows the matrix units are the limit.

PyTorch form: chunks of columns, passed over twice, for the rows' sums and for all else; both gradients come with the
loss, so that logits need not be computed a third time.
"""

import math
from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from .backend import INTERPRET, choose, launching, tl, triton, triton_unsupported
from .inputs import Inputs
from .registry import Call, Code, Operation, call_name, register
from .shapes import PROTOTYPE_SHAPES, PrototypeShape

MAX_WIDTH, WIDTHS = 256, 16  # widths of the kernels are multiples of this
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
MOST_LOGITS = 2**21  # that the PyTorch form holds at a time
PROGRAMS = 264  # that share the rows' work: two on each multiprocessor of an H100
LOG2E = math.log2(math.e)
LOWEST = tl.constexpr(-1e38)  # below all logits; finite, so that it may be subtracted from itself
# entries of SHAPE, a constant of all kernels: a row's width, the width rounded up to a power of two, the precision of
# tl.dot, and whether Triton's interpreter runs the kernel
WIDTH, PADDED_WIDTH, PRECISION, INTERPRETED = (tl.constexpr(i) for i in range(4))


def prototype_loss_ref(
    student: Tensor,
    teacher: Tensor,
    prototypes: Tensor,
    teacher_prototypes: Tensor,
    centre: Tensor,
    student_temp: float,
    teacher_temp: float | Tensor,
) -> tuple[Tensor, Tensor]:
    """Plain PyTorch, pair after pair, in student's dtype, at least float32."""
    dtype = torch.promote_types(student.dtype, torch.float32)
    n_crops = 2 * len(student) // len(teacher)
    with torch.autocast(student.device.type, enabled=False):
        logits = student.to(dtype) @ prototypes.to(dtype).T / student_temp
        with torch.no_grad():
            log_q = ((teacher.to(dtype) @ teacher_prototypes.to(dtype).T - centre) / teacher_temp).log_softmax(1)
            q = log_q.exp()
            entropy = -(q * log_q).sum(1).mean()
            figures = torch.stack([entropy, torch.special.entr(q.mean(0)).sum() - entropy]).float()
        log_p = logits.log_softmax(1).chunk(n_crops)
        pairs = [(i, j) for i in range(2) for j in range(n_crops) if i != j]
        terms = [-(q.chunk(2)[i] * log_p[j]).sum(1).mean() for i, j in pairs]
    return torch.stack(terms).mean(), figures


def prototype_loss_bytes(
    n_rows: int, n_targets: int, n_prototypes: int, width: int, element_size: int, *, backward: bool = False
) -> int:
    """Bytes that must move for n_rows of the student and n_targets of the teacher: the forward reads both, all
    prototypes and the centre; the backward too, and writes two gradients."""
    student = (n_rows + n_prototypes) * width * element_size
    teacher = (n_targets + n_prototypes) * width * element_size + 4 * n_prototypes
    return (2 if backward else 1) * student + teacher


def prototype_loss_flops(
    n_rows: int, n_targets: int, n_prototypes: int, width: int, *, backward: bool = False
) -> int:
    """Useful FLOPs: the product of all rows and their prototypes forward, two of the student's rows backward."""
    return 2 * (2 * n_rows if backward else n_rows + n_targets) * n_prototypes * width


def _partners(student: Tensor, n_samples: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """What the pairs make of student (n_crops * B, D), in `dtype`: c_j of each row, (n_crops * B, 1), and the sum over
    j != i of z_j for each of the teacher's rows, (2 * B, D)."""
    crops = student.to(dtype).unflatten(0, (-1, n_samples))
    counts = torch.full((len(student), 1), 2.0, dtype=dtype, device=student.device)
    counts[: 2 * n_samples] = 1
    return counts, (crops.sum(0) - crops[:2]).flatten(0, 1)


def _combine(lse, q_means, p_means, counts, partners, n_samples, student_temp) -> tuple[Tensor, Tensor]:
    """The loss and the gradient of student (n_crops * B, D), which is empty where p_means is.

    lse, counts (n_crops * B, 1); q_means (2 * B, D), p_means (n_crops * B, D): sums over k of q_ik w_k and p_jk w_k.
    """
    n_pairs = 2 * len(lse) - 2 * n_samples  # times samples
    loss = ((counts * lse).sum() - (q_means * partners).sum() / student_temp) / n_pairs
    if not len(p_means):
        return loss, p_means
    targets = q_means.unflatten(0, (2, -1))
    gradient = (counts * p_means).unflatten(0, (-1, n_samples))
    gradient[:2] -= targets.flip(0)
    gradient[2:] -= targets.sum(0)
    return loss, gradient.flatten(0, 1).div_(student_temp * n_pairs)


@torch.library.custom_op("cinema_fast::prototype_loss_chunked", mutates_args=())
def _chunked_op(
    student: Tensor, teacher: Tensor, prototypes: Tensor, teacher_prototypes: Tensor, centre: Tensor,
    student_temp: float, teacher_temp: Tensor, dtype: torch.dtype, student_grad: bool, prototypes_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The PyTorch form: loss, figures, and the gradients that are needed (the others are empty)."""
    wide = torch.promote_types(dtype, torch.float32)
    low = student.is_cuda and dtype != wide
    work = dtype if low else wide  # a CPU's products in 16 bits round their results to 16 bits, and are no faster
    z, z_teacher = student.to(work), teacher.to(work)
    n_targets, n_rows, n_columns = len(teacher), len(teacher) + len(student), len(prototypes)
    counts, partners = _partners(z, n_targets // 2, wide)
    inverse = torch.full((n_rows, 1), 1 / student_temp, dtype=wide, device=student.device)
    inverse[:n_targets] = 1 / teacher_temp.to(wide)
    width = min(max(MOST_LOGITS // n_rows, 1), n_columns)
    memory = torch.empty(n_rows * width, dtype=wide, device=student.device)
    chunks = [slice(k, min(k + width, n_columns)) for k in range(0, n_columns, width)]

    given = {"out_dtype": wide} if low else {}

    def logits(chunk, n):
        """The first n rows of the teacher's and then the student's, (n, columns), over the temperatures"""
        x = memory[: n * (chunk.stop - chunk.start)].view(n, -1)
        for part, rows, keys in ((x[:n_targets], z_teacher, teacher_prototypes), (x[n_targets:], z, prototypes)):
            if len(part):
                torch.mm(rows, keys[chunk].to(work).T, out=part, **given)
        x[:n_targets] -= centre[:, chunk]
        return x.mul_(inverse[:n])

    tops, totals = [], []
    for chunk in chunks:
        x = logits(chunk, n_rows)
        tops.append(x.amax(1, keepdim=True))
        totals.append(x.sub_(tops[-1]).exp_().sum(1, keepdim=True))
    lse = (torch.cat(tops, 1) + torch.cat(totals, 1).log_()).logsumexp(1, keepdim=True)

    needed = n_rows if student_grad or prototypes_grad else n_targets
    means = torch.zeros(n_rows if student_grad else n_targets, z.shape[1], dtype=wide, device=z.device)
    d_prototypes = prototypes.new_empty(prototypes.shape if prototypes_grad else 0)
    factors = torch.cat([-partners, counts * z]).to(work)
    entropy, entropy_of_mean = torch.zeros(2, dtype=wide, device=z.device)
    scale = 1 / (student_temp * 2 * (len(student) - n_targets // 2))
    for chunk in chunks:
        if len(chunks) == 1:  # whose exponentials are still there
            x = x[:needed].mul_((tops[0] - lse)[:needed].exp())
        else:
            x = logits(chunk, needed).sub_(lse[:needed]).exp_()
        entropy += torch.special.entr(x[:n_targets]).sum()
        entropy_of_mean += torch.special.entr(x[:n_targets].mean(0)).sum()
        weights = x.to(work)
        means += torch.mm(weights[: len(means)], prototypes[chunk].to(work), **given)
        if prototypes_grad:
            place = d_prototypes[chunk] if prototypes.dtype == wide else None  # else it is rounded at the end
            product = torch.mm(weights.T, factors, out=place, **given).mul_(scale)
            if place is None:
                d_prototypes[chunk] = product
    loss, d_student = _combine(
        lse[n_targets:], means[:n_targets], means[n_targets:], counts, partners, n_targets // 2, student_temp
    )
    entropy /= n_targets
    figures = torch.stack([entropy, entropy_of_mean - entropy]).float()
    return loss, figures, d_student.to(student.dtype), d_prototypes


@_chunked_op.register_fake
def _(student, teacher, prototypes, teacher_prototypes, centre, student_temp, teacher_temp, dtype, *needed):
    wide = torch.promote_types(dtype, torch.float32)
    d_student = student.new_empty(student.shape if needed[0] else (0, student.shape[1]))
    d_prototypes = prototypes.new_empty(prototypes.shape if needed[1] else 0)
    return student.new_empty((), dtype=wide), student.new_empty(2, dtype=torch.float32), d_student, d_prototypes


def _keep_gradients(ctx, inputs, output):
    ctx.save_for_backward(*output[2:])
    ctx.needed = inputs[-2:]
    ctx.set_materialize_grads(False)  # of figures and of the gradients


def _scale_gradients(ctx, d_loss, *_):
    if d_loss is None:  # of an unused loss
        return (None,) * 10
    d_student, d_prototypes = (d_loss * x if needed else None for x, needed in zip(ctx.saved_tensors, ctx.needed))
    return d_student, None, d_prototypes, *[None] * 7


_chunked_op.register_autograd(_scale_gradients, setup_context=_keep_gradients)


@triton.jit
def _load_rows(ptr, first, n_rows, BLOCK: tl.constexpr, MASKED: tl.constexpr, SHAPE: tl.constexpr):
    """Rows first..first + BLOCK of a contiguous (n_rows, D), zero from row n_rows on if MASKED: [BLOCK, BLOCK_D]"""
    D: tl.constexpr = SHAPE[WIDTH]
    BLOCK_D: tl.constexpr = SHAPE[PADDED_WIDTH]
    row, col = tl.arange(0, BLOCK)[:, None], tl.arange(0, BLOCK_D)[None, :]
    at = ptr + tl.cast(first, tl.int64) * D + (row * D + col)
    if MASKED and D < BLOCK_D:
        x = tl.load(at, mask=(first + row < n_rows) & (col < D), other=0.0)
    elif MASKED:
        x = tl.load(at, mask=first + row < n_rows, other=0.0)
    elif D < BLOCK_D:
        x = tl.load(at, mask=col < D, other=0.0)
    else:
        x = tl.load(at)
    # the interpreter computes wrongly in bfloat16; on a GPU the matrix units want the dtype as it is
    return x.to(tl.float32) if SHAPE[INTERPRETED] else x


@triton.jit
def _prototype_rows(
    row_ptr, key_ptr, value_ptr, centre_ptr, temp_ptr, top_ptr, total_ptr, mean_ptr, n_rows, n_columns, n_splits, scale,
    TEACHER: tl.constexpr, MEANS: tl.constexpr, STEPS: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
    SHAPE: tl.constexpr,
):  # fmt: skip
    """A tile of rows and every n_splits-th tile of columns: maximum and sum of the rows' exponentials, in base 2, and
    with MEANS the sums of the prototypes that they weight."""
    BLOCK_D: tl.constexpr = SHAPE[PADDED_WIDTH]
    n_tiles = tl.cdiv(n_rows, ROWS)
    tile, split = tl.program_id(0) % n_tiles, tl.program_id(0) // n_tiles
    if TEACHER:
        scale = scale / tl.load(temp_ptr)
    z = _load_rows(row_ptr, tile * ROWS, n_rows, ROWS, True, SHAPE)
    top = tl.full((ROWS,), LOWEST, tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    acc = tl.zeros((ROWS, BLOCK_D if MEANS else 1), tl.float32)
    for step in range(STEPS):
        first = (step * n_splits + split) * COLS
        column = first + tl.arange(0, COLS)
        keys = _load_rows(key_ptr, first, n_columns, COLS, True, SHAPE)
        logits = tl.dot(z, tl.trans(keys), input_precision=SHAPE[PRECISION])  # [ROWS, COLS], without the scale
        if TEACHER:  # of a column that is not there: minus infinity
            centre = tl.load(centre_ptr + column, mask=column < n_columns, other=float("inf"))
            logits = (logits - centre[None, :]) * scale
        else:
            logits = logits * scale + tl.where(column < n_columns, 0.0, float("-inf"))[None, :]
        new_top = tl.maximum(top, tl.max(logits, 1))
        weights = tl.math.exp2(logits - new_top[:, None])
        shrink = tl.math.exp2(top - new_top)
        top = new_top
        total = total * shrink + tl.sum(weights, 1)
        if MEANS:
            values = _load_rows(value_ptr, first, n_columns, COLS, True, SHAPE) if TEACHER else keys
            acc = tl.dot(weights.to(values.dtype), values, acc * shrink[:, None], input_precision=SHAPE[PRECISION])
    row = tile * ROWS + tl.arange(0, ROWS)
    to = split.to(tl.int64) * n_rows + row
    tl.store(top_ptr + to, top, mask=row < n_rows)
    tl.store(total_ptr + to, total, mask=row < n_rows)
    if MEANS:
        col = tl.arange(0, BLOCK_D)[None, :]
        keep = (row[:, None] < n_rows) & (col < SHAPE[WIDTH])
        tl.store(mean_ptr + to[:, None] * SHAPE[WIDTH] + col, acc, mask=keep)


@triton.jit
def _prototype_merge(
    top_ptr, total_ptr, mean_ptr, log_ptr, out_ptr, n_rows, n_splits,
    MEANS: tl.constexpr, STEPS: tl.constexpr, SPLITS: tl.constexpr, SHAPE: tl.constexpr,
):  # fmt: skip
    """A row: what its splits add up to, in their order. Its maximum and the logarithm of its sum over that, in base 2
    (together they would round the teacher's large logits), and its mean prototype."""
    BLOCK_D: tl.constexpr = SHAPE[PADDED_WIDTH]
    row, col = tl.program_id(0), tl.arange(0, BLOCK_D)[None, :]
    tops = tl.full((SPLITS,), LOWEST, tl.float32)
    for step in range(STEPS):
        split = step * SPLITS + tl.arange(0, SPLITS)
        at = split.to(tl.int64) * n_rows + row
        tops = tl.maximum(tops, tl.load(top_ptr + at, mask=split < n_splits, other=LOWEST))
    top = tl.max(tops, 0)
    totals = tl.zeros((SPLITS,), tl.float32)
    acc = tl.zeros((SPLITS, BLOCK_D), tl.float32)
    for step in range(STEPS):
        split = step * SPLITS + tl.arange(0, SPLITS)
        at = split.to(tl.int64) * n_rows + row
        shrink = tl.math.exp2(tl.load(top_ptr + at, mask=split < n_splits, other=LOWEST) - top)
        totals += shrink * tl.load(total_ptr + at, mask=split < n_splits, other=0.0)
        if MEANS:
            keep = (split[:, None] < n_splits) & (col < SHAPE[WIDTH])
            acc += shrink[:, None] * tl.load(mean_ptr + at[:, None] * SHAPE[WIDTH] + col, mask=keep, other=0.0)
    total = tl.sum(totals, 0)
    tl.store(log_ptr + row, top)
    tl.store(log_ptr + n_rows + row, tl.math.log2(total))
    if MEANS:
        mean = tl.sum(acc, 0) / total
        column = tl.arange(0, BLOCK_D)
        tl.store(out_ptr + row.to(tl.int64) * SHAPE[WIDTH] + column, mean, mask=column < SHAPE[WIDTH])


@triton.jit
def _prototype_figures(
    row_ptr, key_ptr, centre_ptr, temp_ptr, log_ptr, entropy_ptr, n_rows, n_columns, scale,
    STEPS: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, SHAPE: tl.constexpr,
):  # fmt: skip
    """A tile of the teacher's prototypes: their parts of the sum of the rows' entropies and of the entropy of the rows'
    mean, in base 2."""
    first = tl.program_id(0) * COLS
    column = first + tl.arange(0, COLS)
    keys = _load_rows(key_ptr, first, n_columns, COLS, True, SHAPE)
    centre = tl.load(centre_ptr + column, mask=column < n_columns, other=0.0)
    scale = scale / tl.load(temp_ptr)
    weights, logs = tl.zeros((COLS, ROWS), tl.float32), tl.zeros((COLS, ROWS), tl.float32)
    for step in range(STEPS):
        row = step * ROWS + tl.arange(0, ROWS)
        z = _load_rows(row_ptr, step * ROWS, n_rows, ROWS, True, SHAPE)
        top = tl.load(log_ptr + row, mask=row < n_rows, other=0.0)
        log_total = tl.load(log_ptr + n_rows + row, mask=row < n_rows, other=0.0)
        logits = tl.dot(keys, tl.trans(z), input_precision=SHAPE[PRECISION])  # [COLS, ROWS]
        log_q = (logits - centre[:, None]) * scale - top[None, :] - log_total[None, :]
        log_q = tl.where(row[None, :] < n_rows, log_q, LOWEST)
        q = tl.math.exp2(log_q)
        weights += q
        logs += q * log_q
    # not summed further: Triton 3.6 cannot compile a sum of sums for sm_100
    mean = tl.sum(weights, 1) / n_rows
    of_mean = tl.where(mean > 0.0, mean * tl.math.log2(tl.where(mean > 0.0, mean, 1.0)), 0.0)
    tl.store(entropy_ptr + column, -tl.sum(logs, 1), mask=column < n_columns)
    tl.store(entropy_ptr + n_columns + column, -of_mean, mask=column < n_columns)


@triton.jit
def _weigh_rows(
    acc, keys, row_ptr, factor_ptr, log_ptr, centre, n_rows, n_global, scale,
    TEACHER: tl.constexpr, STEPS: tl.constexpr, MASKED: tl.constexpr, ROWS: tl.constexpr, SHAPE: tl.constexpr,
):  # fmt: skip
    """Adds sum over rows of weight[k, row] * factor[row] to acc [COLS, BLOCK_D]. The student's rows are their factors,
    and from n_global on count twice."""
    for step in range(STEPS):
        row = step * ROWS + tl.arange(0, ROWS)
        z = _load_rows(row_ptr, step * ROWS, n_rows, ROWS, MASKED, SHAPE)
        log = tl.load(log_ptr + row, mask=row < n_rows, other=float("inf"))  # the weight of a row that is not there: 0
        logits = tl.dot(keys, tl.trans(z), input_precision=SHAPE[PRECISION])  # [COLS, ROWS], without the scale
        if TEACHER:
            log_total = tl.load(log_ptr + n_rows + row, mask=row < n_rows, other=0.0)
            weights = tl.math.exp2((logits - centre[:, None]) * scale - log[None, :] - log_total[None, :])
            factors = _load_rows(factor_ptr, step * ROWS, n_rows, ROWS, MASKED, SHAPE)
        else:
            log -= tl.where(row < n_global, 0.0, 1.0)  # base 2: twice the weight
            weights = tl.math.exp2(logits * scale - log[None, :])
            factors = z
        acc = tl.dot(weights.to(factors.dtype), factors, acc, input_precision=SHAPE[PRECISION])
    return acc


@triton.jit
def _prototype_bwd(
    student_ptr, teacher_ptr, key_ptr, teacher_key_ptr, partner_ptr, centre_ptr, temp_ptr, lse_ptr, teacher_log_ptr,
    d_loss_ptr, out_ptr, n_rows, n_targets, n_columns, scale, teacher_scale, weight,
    STEPS: tl.constexpr, MASKED: tl.constexpr, TEACHER_STEPS: tl.constexpr, TEACHER_MASKED: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr, SHAPE: tl.constexpr,
):  # fmt: skip
    """The gradient of a tile of the student's prototypes"""
    BLOCK_D: tl.constexpr = SHAPE[PADDED_WIDTH]
    first = tl.program_id(0) * COLS
    column = first + tl.arange(0, COLS)
    teacher_scale = teacher_scale / tl.load(temp_ptr)
    centre = tl.load(centre_ptr + column, mask=column < n_columns, other=0.0)
    acc = tl.zeros((COLS, BLOCK_D), tl.float32)
    keys = _load_rows(teacher_key_ptr, first, n_columns, COLS, True, SHAPE)
    acc = _weigh_rows(
        acc, keys, teacher_ptr, partner_ptr, teacher_log_ptr, centre, n_targets, n_targets, teacher_scale,
        True, TEACHER_STEPS, TEACHER_MASKED, ROWS, SHAPE,
    )  # fmt: skip
    keys = _load_rows(key_ptr, first, n_columns, COLS, True, SHAPE)
    acc = _weigh_rows(
        -acc, keys, student_ptr, None, lse_ptr, None, n_rows, n_targets, scale, False, STEPS, MASKED, ROWS, SHAPE
    )
    col = tl.arange(0, BLOCK_D)[None, :]
    keep = (column[:, None] < n_columns) & (col < SHAPE[WIDTH])
    gradient = acc * (weight * tl.load(d_loss_ptr).to(tl.float32))
    to = column.to(tl.int64)[:, None] * SHAPE[WIDTH] + col
    tl.store(out_ptr + to, gradient.to(out_ptr.dtype.element_ty), mask=keep)


def prototype_loss_config(n_targets: int, width: int, dtype: torch.dtype) -> dict[str, dict[str, int]]:
    """Launch configuration of each kernel ("targets": of the teacher's rows): tiles of ROWS rows and COLS prototypes.

    Static choices that were not measured on a GPU: 16-bit tiles that the matrix units of sm_90 take whole, and that
    spill no registers on sm_80, sm_90 and sm_100.
    """
    if dtype == torch.float32:  # no matrix units unless tf32 is allowed: whole rows of both operands in registers
        side = 32 if width <= 64 else 16
        tiles = dict.fromkeys(("targets", "rows", "figures", "bwd"), (side, side, 8))
    else:  # with 8 warps two warpgroups compute the same logits; with 4 targets and masked rows spill on sm_80
        bwd = (64, 64, 8 if n_targets % 128 else 4)  # crops of so many rows: none is masked
        tiles = {"targets": (64, 64, 8), "rows": (64, 64, 4), "figures": (64, 64, 4), "bwd": bwd}
    return {
        kernel: {"ROWS": rows, "COLS": cols, "num_warps": warps, "num_stages": 2}
        for kernel, (rows, cols, warps) in tiles.items()
    }


def unsupported(student: Tensor, prototypes: Tensor, dtype: torch.dtype) -> list[str]:
    """Why the kernels cannot run on these tensors, with products in `dtype`; empty where they can."""
    why = triton_unsupported(student, prototypes)
    if dtype not in DTYPES:
        why.append(f"dtype {str(dtype)[6:]} (expected {', '.join(str(d)[6:] for d in DTYPES)})")
    if student.shape[1] > MAX_WIDTH:
        why.append(f"width {student.shape[1]} (expected {MAX_WIDTH} at most)")
    return why


def _shape(width: int) -> tuple:
    precision = "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"
    return width, max(16, 1 << (width - 1).bit_length()), precision, INTERPRET


def _walk_rows(rows, keys, values, centre, temp, scale, tile, means: bool) -> tuple[Tensor, Tensor]:
    """Of each row its maximum and the logarithm of its sum over that, in base 2, (2, n), and its mean of `values`,
    (n, D), empty without `means`; centre, temp: the teacher's, else None."""
    (n_rows, width), n_columns, cols = rows.shape, len(keys), tile["COLS"]
    n_tiles = -(-n_rows // tile["ROWS"])
    n_splits = min(max(PROGRAMS // n_tiles, 1), -(-n_columns // cols))
    steps, shape = -(-n_columns // (cols * n_splits)), _shape(width)
    top, total, logs = (rows.new_empty(n, n_rows, dtype=torch.float32) for n in (n_splits, n_splits, 2))
    parts = rows.new_empty(n_splits, n_rows if means else 0, width, dtype=torch.float32)
    mean = parts.new_empty(parts.shape[1:])
    _prototype_rows[(n_tiles * n_splits,)](
        rows, keys, values, centre, temp, top, total, parts, n_rows, n_columns, n_splits, scale,
        TEACHER=centre is not None, MEANS=means, STEPS=steps, SHAPE=shape, **tile,
    )  # fmt: skip
    splits = min(1 << (n_splits - 1).bit_length(), 16)
    _prototype_merge[(n_rows,)](
        top, total, parts, logs, mean, n_rows, n_splits,
        MEANS=means, STEPS=-(-n_splits // splits), SPLITS=splits, SHAPE=shape, num_warps=4,
    )  # fmt: skip
    return logs, mean


@torch.library.custom_op("cinema_fast::prototype_loss", mutates_args=())
def _forward_op(
    student: Tensor, teacher: Tensor, prototypes: Tensor, teacher_prototypes: Tensor, centre: Tensor,
    student_temp: float, teacher_temp: Tensor, dtype: torch.dtype, student_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Loss, figures, student's gradient (empty where it is not needed), and of student's rows the logarithms of their
    sums, of the teacher's the maxima and the logarithms of the sums over those, in base 2."""
    z, targets, own, theirs = (x.to(dtype).contiguous() for x in (student, teacher, prototypes, teacher_prototypes))
    centre, n_targets, n_columns = centre.float().contiguous(), len(teacher), len(prototypes)
    config = prototype_loss_config(n_targets, z.shape[1], dtype)
    tile = config["figures"]
    entropies = centre.new_empty(2, n_columns)
    with launching("prototype_loss", z):
        teacher_logs, q_means = _walk_rows(targets, theirs, own, centre, teacher_temp, LOG2E, config["targets"], True)
        logs, p_means = _walk_rows(z, own, None, None, None, LOG2E / student_temp, config["rows"], student_grad)
        _prototype_figures[(triton.cdiv(n_columns, tile["COLS"]),)](
            targets, theirs, centre, teacher_temp, teacher_logs, entropies, n_targets, n_columns, LOG2E,
            STEPS=triton.cdiv(n_targets, tile["ROWS"]), SHAPE=_shape(z.shape[1]), **tile,
        )  # fmt: skip
    counts, partners = _partners(z, n_targets // 2, torch.float32)
    lse = logs.sum(0)
    loss, d_student = _combine(lse[:, None] / LOG2E, q_means, p_means, counts, partners, n_targets // 2, student_temp)
    entropy, of_mean = (entropies.sum(1) / LOG2E).unbind()
    figures = torch.stack([entropy / n_targets, of_mean - entropy / n_targets])
    return loss, figures, d_student.to(student.dtype), lse, teacher_logs


@_forward_op.register_fake
def _(student, teacher, prototypes, teacher_prototypes, centre, student_temp, teacher_temp, dtype, student_grad):
    d_student = student.new_empty(student.shape if student_grad else (0, student.shape[1]))
    sizes = (), 2, len(student), (2, len(teacher))
    loss, figures, *logs = (student.new_empty(size, dtype=torch.float32) for size in sizes)
    return loss, figures, d_student, *logs


@torch.library.custom_op("cinema_fast::prototype_loss_bwd", mutates_args=())
def _backward_op(
    d_loss: Tensor, student: Tensor, teacher: Tensor, prototypes: Tensor, teacher_prototypes: Tensor, centre: Tensor,
    teacher_temp: Tensor, lse: Tensor, teacher_logs: Tensor, student_temp: float, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """The gradient of prototypes"""
    z, targets, own, theirs = (x.to(dtype).contiguous() for x in (student, teacher, prototypes, teacher_prototypes))
    d_prototypes = _empty_prototypes(d_loss, student, teacher, prototypes)
    n_rows, n_targets, n_columns = len(z), len(targets), len(prototypes)
    tile = prototype_loss_config(n_targets, z.shape[1], dtype)["bwd"]
    _, partners = _partners(z, n_targets // 2, torch.float32)
    weight = 1 / (student_temp * (2 * n_rows - n_targets))
    with launching("prototype_loss_bwd", z):
        _prototype_bwd[(triton.cdiv(n_columns, tile["COLS"]),)](
            z, targets, own, theirs, partners.to(dtype), centre.float().contiguous(), teacher_temp, lse, teacher_logs,
            d_loss, d_prototypes, n_rows, n_targets, n_columns, LOG2E / student_temp, LOG2E, weight,
            STEPS=triton.cdiv(n_rows, tile["ROWS"]), MASKED=n_rows % tile["ROWS"] > 0,
            TEACHER_STEPS=triton.cdiv(n_targets, tile["ROWS"]), TEACHER_MASKED=n_targets % tile["ROWS"] > 0,
            SHAPE=_shape(z.shape[1]), **tile,
        )  # fmt: skip
    return d_prototypes


@_backward_op.register_fake
def _empty_prototypes(d_loss, student, teacher, prototypes, *_):
    return torch.empty_like(prototypes, memory_format=torch.contiguous_format)


def _setup_context(ctx, inputs, output):
    *tensors, ctx.student_temp, teacher_temp, ctx.dtype, ctx.student_grad = inputs
    ctx.save_for_backward(*tensors, teacher_temp, *output[2:])
    ctx.set_materialize_grads(False)


def _vjp(ctx, d_loss, *_):
    if d_loss is None:
        return (None,) * 9
    *tensors, d_student, lse, teacher_logs = ctx.saved_tensors
    d_prototypes = None
    if ctx.needs_input_grad[2]:
        d_prototypes = _backward_op(d_loss, *tensors, lse, teacher_logs, ctx.student_temp, ctx.dtype)
    return d_loss * d_student if ctx.student_grad else None, None, d_prototypes, *[None] * 6


_forward_op.register_autograd(_vjp, setup_context=_setup_context)


def _check(student, teacher, prototypes, teacher_prototypes, centre, student_temp, teacher_temp) -> torch.dtype:
    """The dtype of the products. ValueError where arguments do not fit together."""
    given = {
        "student": student, "teacher": teacher, "prototypes": prototypes, "teacher_prototypes": teacher_prototypes,
        "centre": centre,
    }  # fmt: skip
    if student.ndim != 2 or not student.numel():
        raise ValueError(f"prototype_loss: expected student (n_crops * B, D), got {tuple(student.shape)}")
    width, rows = student.shape[1], (len(student), len(teacher))
    if teacher.ndim != 2 or teacher.shape[1] != width or rows[1] % 2 or not rows[1]:
        raise ValueError(f"prototype_loss: expected teacher (2 * B, {width}), got {tuple(teacher.shape)}")
    if rows[0] % (rows[1] // 2) or rows[0] < rows[1]:
        raise ValueError(
            f"prototype_loss: teacher has 2 * B = {rows[1]} rows, so student must have B for each of 2 or more crops, "
            f"got {rows[0]}"
        )
    if prototypes.ndim != 2 or prototypes.shape[1] != width or not len(prototypes):
        raise ValueError(f"prototype_loss: expected prototypes (K, {width}), got {tuple(prototypes.shape)}")
    for name, shape in {"teacher_prototypes": prototypes.shape, "centre": (1, len(prototypes))}.items():
        if given[name].shape != shape:
            raise ValueError(f"prototype_loss: expected {name} {tuple(shape)}, got {tuple(given[name].shape)}")
    for name, temp in {"student_temp": student_temp, "teacher_temp": teacher_temp}.items():
        if isinstance(temp, Tensor) and name == "teacher_temp":
            given[name] = temp
            if temp.numel() != 1:
                raise ValueError(f"prototype_loss: expected teacher_temp to be one number, got {tuple(temp.shape)}")
        elif isinstance(temp, Tensor) or not temp > 0:
            raise ValueError(f"prototype_loss: expected {name} to be a number above 0, got {temp}")
    for name, tensor in given.items():
        if tensor.device != student.device:
            raise ValueError(f"prototype_loss: student is on {student.device}, {name} on {tensor.device}")
        if not tensor.is_floating_point():
            raise ValueError(f"prototype_loss: expected {name} to be floating, got {tensor.dtype}")
    kind = student.device.type
    if torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    for name in ("teacher", "prototypes", "teacher_prototypes"):
        if given[name].dtype != student.dtype:
            raise ValueError(f"prototype_loss: student is {student.dtype}, {name} {given[name].dtype}: cast one")
    return student.dtype


def prototype_loss(
    student: Tensor,
    teacher: Tensor,
    prototypes: Tensor,
    teacher_prototypes: Tensor,
    centre: Tensor,
    *,
    student_temp: float,
    teacher_temp: float | Tensor,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Cross-entropy between the teacher's and the student's distributions over K prototypes, for n_crops crops of B
    images.

    Args:
        student (n_crops * B, D) floating: normalised bottleneck outputs, crop after crop (row j * B + b), the two
            global crops first.
        teacher (2 * B, D): the teacher's, of the two global crops; not differentiated.
        prototypes (K, D): the student's, normalised.
        teacher_prototypes (K, D): the teacher's; not differentiated.
        centre (1, K) float32: subtracted from the teacher's logits; not differentiated.
        student_temp, teacher_temp: temperatures, above 0. teacher_temp may be a tensor of one element on the same
            device, which is not read back and not checked.
        backend: "auto", "torch" or "triton".

    Products are computed in autocast's dtype where it is on, else in the inputs' (on a CPU at least in float32), sums
    in float32 or wider. No gradient is computed that is not needed.

    Returns:
        loss (): float32 or wider. figures (2,) float32, without gradient, in nats: mean entropy of the teacher's rows,
        and mean Kullback-Leibler divergence of the rows to their mean.

    Raises:
        ValueError: shapes, dtypes, devices or temperatures that do not fit; BackendError: `backend` cannot run here.
    """
    dtype = _check(student, teacher, prototypes, teacher_prototypes, centre, student_temp, teacher_temp)
    name = choose("prototype_loss", backend, {"triton": lambda: unsupported(student, prototypes, dtype)})
    wide = torch.promote_types(dtype, torch.float32)
    if isinstance(teacher_temp, Tensor):
        teacher_temp = teacher_temp.detach().reshape(()).to(wide)
    else:
        teacher_temp = torch.full((), teacher_temp, dtype=wide, device=student.device)
    tensors = student, teacher.detach(), prototypes, teacher_prototypes.detach(), centre.detach()
    needed = [torch.is_grad_enabled() and x.requires_grad for x in (student, prototypes)]
    with torch.autocast(student.device.type, enabled=False):
        if name == "triton":
            if lacking := -student.shape[1] % WIDTHS:  # zeros change no product
                tensors = *(F.pad(x, (0, lacking)) for x in tensors[:4]), tensors[4]
            loss, figures, *_ = _forward_op(*tensors, student_temp, teacher_temp, dtype, needed[0])
        else:
            loss, figures, *_ = _chunked_op(*tensors, student_temp, teacher_temp, dtype, *needed)
    return loss, figures.detach()

# Registration


def _call(s: PrototypeShape, inputs: Inputs, dtype: torch.dtype) -> list[Tensor]:
    """Under autocast. Rows of random values are no unit vectors: the temperatures are of their logits' size."""
    student, prototypes = (inputs.floats(n, s.width, grad=True) for n in (s.n_crops * s.batch, s.prototypes))
    teacher, teacher_prototypes = (inputs.floats(n, s.width) for n in (2 * s.batch, s.prototypes))
    centre, temp = inputs.floats(1, s.prototypes), torch.full((), 4.0, device=inputs.device)
    with inputs.autocast(dtype):
        loss, figures = prototype_loss(
            student, teacher, prototypes, teacher_prototypes, centre, student_temp=10.0, teacher_temp=temp,
            backend="triton",
        )  # fmt: skip
    return [figures, *inputs.with_gradients(loss, student, prototypes)]


def _calls() -> Iterator[Call]:
    for name, shape in PROTOTYPE_SHAPES.items():
        for dtype in (torch.bfloat16, torch.float32) if shape.width <= 64 else (torch.bfloat16,):
            yield Call(call_name(name, dtype), partial(_call, shape, dtype=dtype))


register(Operation(
    prototype_loss,
    computes="DINO's loss from bottleneck outputs and prototypes, no logits in memory, deterministic",
    unsupported={"triton": triton_unsupported},
    launches=("prototype_loss",),
    backward=("prototype_loss_bwd",),
    calls=_calls,
    # longer than a tile, and not a multiple of one
    small=partial(_call, PrototypeShape(11, 6, 48, 150)),
    code={
        "_prototype_rows": Code(True, True, True, "GEMMs: prototypes in, sums of them out"),
        "_prototype_merge": Code(False, True, False, "the splits' sums in; of each row only one out"),
        "_prototype_figures": Code(True, True, False, "GEMM: prototypes in, two numbers of each out"),
        "_prototype_bwd": Code(True, True, True, "GEMMs: rows in, the prototypes' gradient out"),
    },
))  # fmt: skip
