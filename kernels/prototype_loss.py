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

"""

import torch
from torch import Tensor

from .backend import choose

MOST_LOGITS = 2**21  # that the PyTorch form holds at a time


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
    d_prototypes = torch.empty(prototypes.shape if prototypes_grad else (0,), dtype=wide, device=z.device)
    factors = torch.cat([-partners, counts * z]).to(work)
    entropy, entropy_of_mean = torch.zeros(2, dtype=wide, device=z.device)
    scale = 1 / (student_temp * 2 * (len(student) - n_targets // 2))
    for chunk in chunks:
        # with one chunk its exponentials are still there
        x = x[:needed].mul_((tops[0] - lse)[:needed].exp()) if len(chunks) == 1 else (
            logits(chunk, needed).sub_(lse[:needed]).exp_()
        )
        entropy += torch.special.entr(x[:n_targets]).sum()
        entropy_of_mean += torch.special.entr(x[:n_targets].mean(0)).sum()
        weights = x.to(work)
        means += torch.mm(weights[: len(means)], prototypes[chunk].to(work), **given)
        if prototypes_grad:
            torch.mm(weights.T, factors, out=d_prototypes[chunk], **given).mul_(scale)
    loss, d_student = _combine(
        lse[n_targets:], means[:n_targets], means[n_targets:], counts, partners, n_targets // 2, student_temp
    )
    entropy /= n_targets
    figures = torch.stack([entropy, entropy_of_mean - entropy]).float()
    return loss, figures, d_student.to(student.dtype), d_prototypes.to(prototypes.dtype)


@_chunked_op.register_fake
def _(student, teacher, prototypes, teacher_prototypes, centre, student_temp, teacher_temp, dtype, *needed):
    wide = torch.promote_types(dtype, torch.float32)
    gradients = (x.new_empty(x.shape if need else (0,)) for x, need in zip((student, prototypes), needed))
    return student.new_empty((), dtype=wide), student.new_empty(2, dtype=torch.float32), *gradients


def _keep_gradients(ctx, inputs, output):
    ctx.save_for_backward(*output[2:])
    ctx.needed = inputs[-2:]
    ctx.set_materialize_grads(False)  # of figures and of the gradients


def _scale_gradients(ctx, d_loss, *_):
    gradients = (d_loss * x if needed else None for x, needed in zip(ctx.saved_tensors, ctx.needed))
    d_student, d_prototypes = gradients if d_loss is not None else (None, None)
    return d_student, None, d_prototypes, *[None] * 7


_chunked_op.register_autograd(_scale_gradients, setup_context=_keep_gradients)


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
    choose("prototype_loss", backend, {})
    if not isinstance(teacher_temp, Tensor):
        wide = torch.promote_types(dtype, torch.float32)
        teacher_temp = torch.full((), teacher_temp, dtype=wide, device=student.device)
    fixed = teacher_prototypes.detach(), centre.detach(), student_temp, teacher_temp.detach().reshape(())
    needed = (torch.is_grad_enabled() and x.requires_grad for x in (student, prototypes))
    with torch.autocast(student.device.type, enabled=False):
        loss, figures, _, _ = _chunked_op(student, teacher.detach(), prototypes, *fixed, dtype, *needed)
    return loss, figures.detach()
