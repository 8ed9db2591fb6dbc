"""Thirty faults of the kind people make, each of which the tests should notice; `run.py` plants them one after another.

`old` must occur exactly once in the file: a fault that no longer fits its code is an error, not a survivor.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """name, and wrong: what is wrong, in a line. old, new: text of `file`, and what is put in its place.

    interpreter: it lies in a Triton kernel, which runs in the interpreter (TRITON_INTERPRET=1) alone.
    """

    name: str
    wrong: str
    file: str
    old: str
    new: str
    interpreter: bool = False

    def planted(self, text: str) -> str:
        """The text of the file with the fault in it. Raises ValueError where `old` does not occur exactly once."""
        if (n := text.count(self.old)) != 1:
            raise ValueError(f"fault {self.name} is stale: its text occurs {n} times in {self.file}, expected once; "
                             "bring it up to date in tests/mutants/faults.py")  # fmt: skip
        return text.replace(self.old, self.new)


FAULTS = (
    # kernels in Triton
    Fault(
        "attention-dk-scale",
        "the gradient of the keys lacks the scale of the logits",
        "kernels/sparse_attention.py",
        "_store(dkeys, n_rows, dk * scale, ROWS, HEAD)",
        "_store(dkeys, n_rows, dk, ROWS, HEAD)",
        interpreter=True,
    ),
    Fault(
        "mse-biased-variance",
        "normalised target patches are divided by the standard deviation over n, not n - 1",
        "kernels/masked_mse.py",
        "/ (N_VALUES - 1)) + EPS)",
        "/ N_VALUES) + EPS)",
        interpreter=True,
    ),
    Fault(
        "patch-embed-last-row",
        "the mask of the last block is off by one: the last patch adds nothing to the weight's gradient",
        "kernels/patch_embed.py",
        "        in_rows = rows < n_rows\n",
        "        in_rows = rows < n_rows - 1\n",
        interpreter=True,
    ),
    Fault(
        "depthwise-absent-neighbour",
        "a masked neighbour is read as the first visible token instead of being skipped",
        "kernels/sparse_depthwise_conv.py",
        """\
            if slots[n] >= 0:
                neighbour = x_ptr + slots[n].to(tl.int64) * (POSITIONS * CHANNELS)
""",
        """\
            if slots[n] >= -1:
                neighbour = x_ptr + tl.maximum(slots[n], 0).to(tl.int64) * (POSITIONS * CHANNELS)
""",
        interpreter=True,
    ),
    Fault(
        "queries-bf16-sum",
        "partial sums of the mask token's gradient are kept in the gradient's own dtype, bf16 or fp16",
        "kernels/assemble_queries.py",
        "partial = dout.new_empty(splits, width, dtype=torch.float32)",
        "partial = dout.new_empty(splits, width)",
        interpreter=True,
    ),
    # kernels on the CPU
    Fault(
        "decode-subset-biased",
        "the decoded subset is drawn by the word that has drawn the mask, so it is not uniform among the masked",
        "kernels/sample_mask.py",
        "second = decode_word.expand(batch, n)",
        "second = mask_word.expand(batch, n)",
    ),
    Fault(
        "mask-not-keyed-by-stream",
        "Philox's counter lacks the stream: all views of the same grid have the same mask",
        "csrc/sample_mask_cpu.cpp",
        "c2 = step, c3 = stream;",
        "c2 = step, c3 = 0;",
    ),
    Fault(
        "flow-last-row",
        "the last row of the frame is left out of the equations that the window sums",
        "csrc/optical_flow_cpu.cpp",
        "if (x + half < X) make_row(x + half);",
        "if (x + half < X - 1) make_row(x + half);",
    ),
    Fault(
        "flow-pyramid-scale",
        "the flow of a coarser level is not made longer on its way to the finer one",
        "kernels/optical_flow/pyramid.py",
        "flow = (along_x._replace(weight=along_x.weight / pyr_scale), along_y)",
        "flow = (along_x, along_y)",
    ),
    # data
    Fault(
        "labels-not-arranged",
        "label maps keep the axes of their file where the cine's are flipped",
        "cinema_fast/data/prepare/study.py",
        "{t: arranged(one, arrangements[view]) for t, one in maps.items()}",
        "{t: arranged(one, AS_STORED) for t, one in maps.items()}",
    ),
    Fault(
        "dicom-spacing-swapped",
        "the two numbers of DICOM's PixelSpacing change places",
        "cinema_fast/data/formats/dicom_slices.py",
        "rows_mm, columns_mm = header.spacing",
        "columns_mm, rows_mm = header.spacing",
    ),
    Fault(
        "crop-off-by-one",
        "the crop begins half a pixel early, so that half of all crops are off by one",
        "cinema_fast/data/prepare/geometry.py",
        "(centre - first) / scale - (size - 1) / 2 + 0.5",
        "(centre - first) / scale - size / 2 + 0.5",
    ),
    Fault(
        "sampler-repeats-a-study",
        "a batch that crosses the end of an epoch goes on in the old order: studies are repeated and lost",
        "cinema_fast/data/loading/sampler.py",
        "self._order(group, int(e))[position[here] % n]",
        "self._order(group, int(epoch[0]))[position[here] % n]",
    ),
    Fault(
        "augmentation-not-keyed-by-epoch",
        "rotation, shift, flip, gamma and noise of a study are the same in every epoch",
        "cinema_fast/data/loading/sampler.py",
        "return philox_numpy(self.seed, study, epoch, long_axis, purpose) * UNIT",
        "return philox_numpy(self.seed, study, 0 * epoch, long_axis, purpose) * UNIT",
    ),
    Fault(
        "motion-map-not-flipped",
        "motion maps are not flipped with their images",
        "cinema_fast/data/loading/augment.py",
        "shift=augment.shift, flip=augment.flip)",
        "shift=augment.shift)",
    ),
    # training
    Fault(
        "resume-loses-optimiser",
        "a resumed run begins with an empty optimiser",
        "cinema_fast/train/checkpoint.py",
        '        optimizer.load_state_dict(checkpoint.state["optimizer"])\n',
        "",
    ),
    Fault(
        "checksum-by-length",
        "a checkpoint's files are compared by their length alone",
        "cinema_fast/train/checkpoint.py",
        "if checksums and file_sum(file) != expected:",
        'if checksums and file_sum(file)["bytes"] != expected["bytes"]:',
    ),
    Fault(
        "accumulation-not-divided",
        "the gradient of several micro-batches is their sum, not their mean",
        "cinema_fast/train/step.py",
        "                part = called(batch, number) / len(batches)\n                part.backward()\n",
        "                part = called(batch, number)\n                part.backward()\n"
        "                part = part / len(batches)\n",
    ),
    Fault(
        "small-gradients-grow",
        "gradients below the norm that they are clipped to are scaled up to it",
        "cinema_fast/train/optimizer.py",
        "optimizer.grad_scale = (norm / clip).clamp(min=1.0)",
        "optimizer.grad_scale = norm / clip",
    ),
    Fault(
        "infinite-gradient-applied",
        "an update whose loss is finite is made although its gradient is not",
        "cinema_fast/train/optimizer.py",
        "made = (loss.isfinite() & norm.isfinite()).float()",
        "made = loss.isfinite().float()",
    ),
    Fault(
        "patience-starts-anew",
        "after a resume early stopping no longer knows for how many validations nothing was better",
        "cinema_fast/train/best.py",
        'self.score, self.step, self.since = state["score"], state["step"], state["since"]',
        'self.score, self.step, self.since = state["score"], state["step"], 0',
    ),
    # tasks and metrics
    Fault(
        "dice-counts-background",
        "the Dice by which the best weights are chosen counts the background as a structure",
        "cinema_fast/tasks/segmentation.py",
        "                for value in range(1, 1 + len(self.structures)):\n",
        "                for value in range(1 + len(self.structures)):\n",
    ),
    Fault(
        "label-map-not-turned-back",
        "predicted label maps are written with the axes of the store, not with those of the scan",
        "cinema_fast/tasks/segmentation.py",
        "label_files(view, arranged(labels, inverse(stored.arrangement), first=1), source, scan)",
        "label_files(view, labels, source, scan)",
    ),
    Fault(
        "labels-not-flipped",
        "label maps are not flipped with their images in augmentation",
        "cinema_fast/tasks/augment_targets.py",
        '"shift": augment.shift, "flip": augment.flip}',
        '"shift": augment.shift, "flip": None}',
    ),
    Fault(
        "landmarks-in-pixels",
        "the distance by which the best weights are chosen is in pixels and called mm",
        "cinema_fast/tasks/landmarks.py",
        '(points - batch.target[f"points {view}"]) * batch.target[f"spacing {view}"][:, None]',
        'points - batch.target[f"points {view}"]',
    ),
    Fault(
        "bootstrap-over-frames",
        "intervals are drawn over rows (frames and classes), not over studies, and are too narrow",
        "cinema_fast/metrics/bootstrap.py",
        "of, names = _numbered(studies, measure.n)",
        "of, names = np.arange(measure.n), list(studies)",
    ),
    # common, models and evaluation
    Fault(
        "no-fsync-before-rename",
        "a durable file gets its name before its content is on disk",
        "cinema_fast/common/atomic.py",
        "            if durable:\n                os.fsync(file.fileno())\n",
        "",
    ),
    Fault(
        "layer-decay-off-by-one",
        "the first block of the encoder learns as slowly as the stem, and so on upwards",
        "cinema_fast/models/conv_vit.py",
        'return int(rest.split(".")[1]) + 1',
        'return int(rest.split(".")[1])',
    ),
    Fault(
        "windows-weighed-by-runs",
        "a window that several runs take counts more than others in the mean of the sliding window",
        "cinema_fast/models/sliding_window.py",
        "weight = 1 / len(range(i % n, runs, n))",
        "weight = 1.0",
    ),
    Fault(
        "failures-unpaired",
        "a heart that one of two models fails on counts in the mean of the other, so that the means are not paired",
        "cinema_fast/evaluation/compare_evaluations.py",
        "if not all(math.isfinite(number(row, n)) for row in rows)",
        "if not any(math.isfinite(number(row, n)) for row in rows)",
    ),
)
