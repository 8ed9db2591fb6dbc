"""What training costs on one to a thousand GPUs, predicted: the tables of docs/how-to/scaling.md.

    python benchmarks/step/scaling.py [--write]

prints them, or puts them into the document. FLOPs are those of `cinema_fast.models.flops`, bytes those of the model as
`cinema_fast.train.ranks` shares it out; speeds of links and the share of a GPU's peak are assumptions, named here.
"""

import argparse
import math
import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from checkout import ROOT

import cinema_fast as cf
from cinema_fast.methods.masking import token_counts
from cinema_fast.models.flops import H100_BF16, forward_flops, step_flops

DOCUMENT = ROOT / "docs" / "how-to" / "scaling.md"
MODELS = ("cinema-base", "cinema-large", "cinema-huge")
DECODED = {1.0: "everything", 0.25: "a quarter"}
MFUS = (0.20, 0.38)  # assumed shares of an H100's 989 TFLOP/s
MASKED = 0.75
EPOCHS, STUDIES = 800, 70_000  # the published recipe's, and UK Biobank's to the next thousand

NODE = 8  # GPUs of a machine, joined by NVLink
# GB/s that NCCL attains on an H100's NVLink (of 450 a direction), and through a 400 Gb/s InfiniBand adapter (46-48):
# NCCL's developers in NVIDIA/nccl-tests, issues 212 and 290
NVLINK, ADAPTER = 370e9, 46e9
# seconds a hop, and the hops of trees and rings, as NCCL estimates them (src/graph/tuning.cc at 01afd20, LL128)
TREE_LINK, TREE_NET, RING_LINK, RING_NET = 1.2e-6, 8.5e-6, 1.9e-6, 4.0e-6
BUCKET = 25 * 2**20  # bytes that DDP sums at a time
# of an H100: FLOP/s of one large bf16 GEMM (750-770 by T. Dao in Dao-AILab/flash-attention, issue 1172), bytes/s of its
# memory (data sheet, as that float8 has twice the FLOP/s of bf16)
GEMM_BF16, MEMORY = 760e12, 3.35e12
STEM_BYTES = 60e6  # activations of stem, embedding and heads of a study of four views, counted on a CPU in bf16


class Sizes(NamedTuple):
    """Parameters: all, those that are trained (position tables are not), and of these, those of the decoder and those
    outside all blocks."""

    all: int
    trained: int
    decoder: int
    outside: int


class Traffic(NamedTuple):
    """What a rank sends in a step: bytes, and in how many collectives."""

    bytes: float
    collectives: int


@cache
def empty_model(name: str) -> cf.CineMA:
    """A preset without memory."""
    with torch.device("meta"):
        return cf.CineMA(cf.preset(name))


@cache
def sizes(name: str) -> Sizes:
    """Parameters of a preset."""
    model = empty_model(name)
    trained, decoder, blocks = (
        sum(p.numel() for p in part.parameters() if p.requires_grad)
        for part in (model, model.decoder, model.encoder.blocks)
    )
    return Sizes(sum(p.numel() for p in model.parameters()), trained, decoder, trained - decoder - blocks)


def counts(config: cf.CineMAConfig, decode_ratio: float) -> tuple[dict[str, int], dict[str, int]]:
    """{view: visible tokens} and {view: decoded tokens} of a study."""
    pairs = {view: token_counts(config, view, MASKED, decode_ratio) for view in config.views}
    return {view: keep for view, (keep, _) in pairs.items()}, {view: decode for view, (_, decode) in pairs.items()}


def study_bytes(name: str) -> int:
    """Bytes of a frame of every view, 8 bits a pixel."""
    return sum(math.prod(size) for size in cf.preset(name).image_size.values())


def activation_bytes(config: cf.CineMAConfig, decode_ratio: float) -> float:
    """Roughly what forward keeps of a study for backward, in bf16.

    A token of the encoder keeps in each block two normalised inputs, q, k, v, what attention gives (2 bytes of each of
    these 6 d numbers) and the hidden layer of 4 d; of the decoder the same without k and v, which the visible have.
    """
    visible, queries = (sum(views.values()) for views in counts(config, decode_ratio))
    encoder = 20 * config.enc_depth * (1 + visible) * config.enc_embed_dim
    decoder = config.dec_depth * (16 * queries + 4 * visible) * config.dec_embed_dim
    return encoder + decoder + (STEM_BYTES if config.enc_conv_chans else 0)


def ddp_traffic(name: str, ranks: int) -> Traffic:
    """Of an all-reduce of float32 gradients in buckets."""
    whole = 4 * sizes(name).trained
    return Traffic(2 * (ranks - 1) / ranks * whole, math.ceil(whole / BUCKET))


def fsdp_traffic(name: str, ranks: int) -> Traffic:
    """Of a model as `ranks.shard_model` cuts it up: what is gathered forward, again backward (but for what belongs to
    the model itself, which FSDP2 keeps), and reduced and scattered.

    A parameter is cut along its first axis, and padded so that every rank has as many rows: one of a single row, such
    as the class token (1, 1, d), is sent whole by every rank. Position tables are not trained and never sent.
    """
    model = empty_model(name)
    units = *model.encoder.blocks, model.decoder
    inner = {p for unit in units for p in unit.parameters()}
    trained = [p for p in model.parameters() if p.requires_grad]
    sent = {p: 4 * (ranks - 1) * math.ceil(p.shape[0] / ranks) * p[0].numel() for p in trained}
    return Traffic(sum((3 if p in inner else 2) * n for p, n in sent.items()), 3 * len(units) + 2)


def seconds(traffic: Traffic, ranks: int, *, adapters: int, ring: bool) -> float:
    """Time of the collectives of a step alone: bytes over the slowest link's share, and hops.

    adapters: InfiniBand adapters of a machine, between which the rings through it are divided. ring: as gathering and
    scattering go; else sums in trees.
    """
    nodes, local = math.ceil(ranks / NODE), min(ranks, NODE)
    bandwidth = NVLINK if nodes == 1 else min(NVLINK, adapters * ADAPTER)
    if ring:
        hops = (ranks - nodes) * RING_LINK + (nodes - 1) * RING_NET
    else:
        hops = 2 * ((local - 1) * TREE_LINK + math.log2(nodes) * TREE_NET)
    return traffic.bytes / bandwidth + traffic.collectives * hops


class Step(NamedTuple):
    """Seconds of a step: computing, its collectives, both one after the other, and hidden behind backward as far as
    they go."""

    compute: float
    communication: float

    @property
    def apart(self) -> float:
        """None of the communication is hidden."""
        return self.compute + self.communication

    @property
    def hidden(self) -> float:
        """Backward, two thirds of the computing, hides what it can."""
        return self.compute / 3 + max(self.compute * 2 / 3, self.communication)


def ddp_step(name: str, decode_ratio: float, batch: int, ranks: int, *, mfu: float, adapters: int = NODE) -> Step:
    """A step of `batch` studies on each of so many ranks."""
    config = cf.preset(name)
    work = batch * step_flops(config, *counts(config, decode_ratio))
    alone = seconds(ddp_traffic(name, ranks), ranks, adapters=adapters, ring=False) if ranks > 1 else 0.0
    return Step(work / (mfu * H100_BF16), alone)


def hours(step_seconds: float, global_batch: int) -> float:
    """Of the whole pre-training."""
    return EPOCHS * STUDIES / global_batch * step_seconds / 3600


def short(value: float) -> str:
    """Two digits, or all before the point."""
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def span(low: float, high: float, form: str) -> str:
    """Both ends, or one where they read alike."""
    first, second = format(low, form), format(high, form)
    return first if first == second else f"{first}-{second}"


def table(heads: list[str], rows: list[list[object]]) -> str:
    """Markdown."""
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in [heads, ["---"] * len(heads), *rows])


def work_table() -> str:
    rows = []
    for name in MODELS:
        for ratio, decoded in DECODED.items():
            shapes = cf.preset(name), *counts(cf.preset(name), ratio)
            step = step_flops(*shapes)
            pace = [mfu * H100_BF16 / step for mfu in MFUS]
            rows.append([
                name, decoded, f"{sizes(name).all / 1e6:.1f}", f"{forward_flops(*shapes).total / 1e9:.0f}",
                f"{step / 1e9:.0f}", *(f"{p:.0f}" for p in pace), f"{pace[-1] * study_bytes(name) / 1e6:.0f}",
            ])  # fmt: skip
    heads = ["model", "decoded", "parameters, M", "forward, GFLOP a study", "step, GFLOP a study"]
    heads += [f"studies/s at {mfu:.0%}" for mfu in MFUS] + [f"MB/s read at {MFUS[-1]:.0%}"]
    return table(heads, rows)


def memory_table() -> str:
    rows = []
    for name in MODELS:
        size = sizes(name)
        kept = 4 * size.all + 12 * size.trained  # weights; gradients and both moments
        # a part; position tables; the largest unit, gathered, with its gradient; what stays gathered
        part = 16 * size.trained / NODE + 4 * (size.all - size.trained) + 8 * size.decoder + 4 * size.outside
        columns = (4 * size.all, 4 * size.trained, 8 * size.trained, kept + 4 * size.trained, part)
        active = (f"{activation_bytes(cf.preset(name), ratio) / 1e9:.2f}" for ratio in DECODED)
        saved = 4 * size.all + 8 * size.trained
        rows.append([name, *(f"{n / 1e9:.2f}" for n in columns), " / ".join(active), f"{saved / 1e9:.2f}"])
    heads = ["GB a GPU", "weights", "gradients", "AdamW", "DDP, with buckets", f"FSDP over {NODE}"]
    heads += ["activations a study, everything / a quarter", "checkpoint"]
    return table(heads, rows)


def traffic_table() -> str:
    rows = []
    for name in MODELS:
        for ranks in (8, 64, 1024):
            row = [name, ranks]
            for find, ring in ((ddp_traffic, False), (fsdp_traffic, True)):
                traffic = find(name, ranks)
                times = [seconds(traffic, ranks, adapters=n, ring=ring) for n in (NODE, 1)]
                row += [f"{traffic.bytes / 1e9:.2f}", f"{times[0] * 1e3:.1f}", f"{times[1] * 1e3:.1f}"]
            rows.append(row)
    each = ["ms", "ms, one adapter a machine"]
    return table(["model", "GPUs", "DDP, GB", *each, "FSDP, GB", *each], rows)


def strong_table() -> str:
    rows = []
    for name in MODELS:
        for ranks in (8, 16, 32, 64):
            row = [name, ranks, 64 // ranks]
            for ratio in DECODED:
                step = ddp_step(name, ratio, 64 // ranks, ranks, mfu=MFUS[-1])
                row += [f"{step.compute * 1e3:.1f} + {step.communication * 1e3:.1f}"]
                row += [span(step.compute / step.apart * 100, step.compute / step.hidden * 100, ".0f")]
            rows.append(row)
    heads = ["model", "GPUs", "studies a GPU"]
    for decoded in DECODED.values():
        heads += [f"{decoded} decoded: ms", "efficiency, %"]
    return table(heads, rows)


def plan_table() -> str:
    rows = []
    for ranks, batch in ((1, 64), (8, 64), (64, 64), (64, 512), (256, 2048), (1024, 4096)):
        steps = EPOCHS * STUDIES / batch
        row = [ranks, batch, batch // ranks, f"{steps / 1e3:.1f}", f"{1e-3 * math.sqrt(batch / 64):.1e}"]
        for name in MODELS:
            for mfu in MFUS:
                made = [ddp_step(name, ratio, batch // ranks, ranks, mfu=mfu) for ratio in DECODED]
                row.append(" / ".join(short(hours(step.apart, batch)) for step in made))
        fastest = ddp_step(MODELS[0], 0.25, batch // ranks, ranks, mfu=MFUS[-1])
        rows.append([*row, f"{batch / fastest.apart * study_bytes(MODELS[0]) / 1e9:.1f}"])
    heads = ["GPUs", "studies a step", "a GPU", "thousand steps", "lr by the square root"]
    heads += [f"{name.removeprefix('cinema-')}, {mfu:.0%}: h" for name in MODELS for mfu in MFUS]
    return table([*heads, "GB/s read, base"], rows)


def float8_table() -> str:
    """A block's linear layers, ns a token, forward and backward: what float8 GEMMs save and what the casts to it take.

    Scaled by each tensor's maximum, a tensor is read for it, read again to be cast, and written by rows and by columns
    (Hopper multiplies float8 along the inner axis of both operands only): 6 bytes a value of the input and of the
    output's gradient. Weights are left out, being small beside tokens.
    """
    rows = []
    for width in (512, *(cf.preset(name).enc_embed_dim for name in MODELS)):
        layers = ((width, 3 * width), (width, width), (width, 4 * width), (4 * width, width))
        bf16 = 6 * sum(n_in * n_out for n_in, n_out in layers) / GEMM_BF16
        casts = 6 * sum(n_in + n_out for n_in, n_out in layers) / MEMORY
        after = bf16 / 2 + casts
        rows.append([width, *(f"{value * 1e9:.1f}" for value in (bf16, bf16 / 2, casts)), f"{100 * after / bf16:.0f}"])
    return table(["width", "bf16", "saved", "casts", "float8, % of bf16"], rows)


TABLES = {
    "work": work_table, "memory": memory_table, "traffic": traffic_table, "strong": strong_table, "plan": plan_table,
    "float8": float8_table,
}  # fmt: skip


def with_tables(text: str) -> str:
    """The document with the tables of today, each between <!-- name --> and <!-- /name -->."""
    for name, make in TABLES.items():
        before, begun, rest = text.partition(f"<!-- {name} -->\n")
        _, ended, after = rest.partition(f"\n<!-- /{name} -->")
        if not (begun and ended):
            raise SystemExit(f"{DOCUMENT.name}: the section between <!-- {name} --> and <!-- /{name} --> is missing")
        text = f"{before}{begun}{make()}{ended}{after}"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the tables into docs/how-to/scaling.md")
    if parser.parse_args().write:
        DOCUMENT.write_text(with_tables(DOCUMENT.read_text()))
        return
    for name, make in TABLES.items():
        print(f"{name}:\n{make()}\n")


if __name__ == "__main__":
    main()
