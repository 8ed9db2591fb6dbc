"""DINO's step on a CPU, ours against the public code's arithmetic in plain PyTorch, in turn in one process.

    python benchmarks/step/compare_dino.py [--batch 2] [--rounds 7] [--memory]

A step is forward, loss, backward, clipping, AdamW and the teacher's average, on the same weights and crops, without
drop path. The learning rate is 0 and the teacher's momentum 1, so that every step computes the same: the losses are
compared before anything is timed. "Fused attention" is the plain code with scaled_dot_product_attention alone put in;
"compiled" is ours compiled as by `pretrain --mode compile`.
A ratio is the median over rounds of the two times within one round. Cutting the crops from stored images is timed
apart. --memory measures the peak above what is resident before the second step (parameters, gradients, optimiser
state), each case in a process of its own. Prints tables and writes benchmarks/results/dino-<date>.json.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import checkout
import conditions
import torch
import workload
from compare_reference import DTYPES, peak_above_resident, peaks_of, ratio_row, time_in_turn
from plain_dino import PlainDINO, plain_update
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import cinema_fast as cf
from cinema_fast.data.loading.crops import CropRecipe, cut_crops
from cinema_fast.data.loading.image_choice import Images
from cinema_fast.models.config import DINOConfig, ViTConfig
from cinema_fast.train.compile import compile_model

PRESETS = ("cmrfm-demo", "cmrfm-small8")
TOY = DINOConfig(  # for tests of this script, never for a timing
    ViTConfig(embed_dim=16, depth=2, n_heads=2, image_size=32), prototypes=64, head_hidden=32, bottleneck=8, n_local=2,
    local_size=16,
)  # fmt: skip
SPEEDS = (  # ours, reference, what it should be at least
    ("ours fp32", "plain fp32", 1.3),
    ("ours bf16", "plain fp32", 2.0),
    ("ours bf16", "plain bf16", None),
    ("ours fp32, compiled", "plain fp32", 1.3),
    ("ours bf16, compiled", "plain fp32", 2.0),
    ("plain fp32, fused attention", "plain fp32", None),
    ("plain bf16, fused attention", "plain fp32", None),
)
MEMORY = (("ours fp32", "plain fp32", None), ("ours bf16", "plain fp32", 0.5))  # ..., at most
PROFILED, PROFILED_STEPS = ("ours fp32", "ours bf16"), 3
PARTS = {  # PyTorch's operations, by the start of their names; everything else is the rest
    "attention": ("aten::_scaled_dot_product", "aten::bmm", "aten::baddbmm", "aten::_softmax"),
    "other products": ("aten::mm", "aten::addmm"),
}
TEACHER_TEMP, CLIP, WEIGHT_DECAY = 0.04, 3.0, 0.04
STORED_SIZE = 256  # pixels per axis of the images that crops are cut from


class Contest:
    """Both models with the same weights, and `steps`: {case: step}, each returning its loss."""

    def __init__(self, config: DINOConfig, batch: int):
        torch.manual_seed(0)
        self.config = config = replace(config, drop_path=0.0)
        self.ours, self.plain = cf.DINO(config), PlainDINO(config)
        with torch.no_grad():
            for parameter in self.ours.teacher.parameters():  # a teacher that is not the student
                parameter.mul_(1.01)
        self.plain.load(self.ours)
        self.our_optimizer, self.plain_optimizer = self.ours.optimizer(), self.plain.optimizer()
        sizes = [config.vit.image_size] * 2 + [config.local_size] * config.n_local
        self.crops = [torch.rand(batch, config.vit.in_chans, size, size) for size in sizes]
        self.steps: dict[str, Callable[[], Tensor]] = {}
        compiled = compile_model(self.ours)
        for name, dtype in DTYPES.items():
            self.steps[f"plain {name}"] = partial(self._plain_step, dtype, False)
            self.steps[f"plain {name}, fused attention"] = partial(self._plain_step, dtype, True)
            self.steps[f"ours {name}"] = partial(self._our_step, dtype, self.ours)
            self.steps[f"ours {name}, compiled"] = partial(self._our_step, dtype, compiled)

    def _plain_step(self, dtype: torch.dtype, fused: bool) -> Tensor:
        model = self.plain
        model.use_fused_attention(fused)
        loss = workload.forward_backward(model, lambda: model(self.crops, TEACHER_TEMP), dtype)
        plain_update(model, self.plain_optimizer, lr=0.0, weight_decay=WEIGHT_DECAY, clip=CLIP, momentum=1.0)
        return loss

    def _our_step(self, dtype: torch.dtype, run: nn.Module) -> Tensor:
        """run: ours, or ours compiled."""
        model = self.ours
        loss = workload.forward_backward(model, lambda: run(self.crops, TEACHER_TEMP).loss, dtype)
        self.our_optimizer.step(lr=0.0, weight_decay=WEIGHT_DECAY, clip=CLIP, loss=loss)
        model.update_teacher(1.0)
        return loss

    def forget_centres(self) -> None:
        self.ours.centre.zero_()
        self.plain.centre.zero_()


def config_of(preset: str) -> DINOConfig:
    """A preset, or "toy"."""
    return TOY if preset == "toy" else cf.preset(preset)


def check(contest: Contest) -> dict[str, float]:
    """{case: loss} of one step each, which warms up too. Raises GateError where a case does not compute the same."""
    losses = {}
    for case, step in contest.steps.items():
        contest.forget_centres()
        losses[case] = step().item()
        budget = workload.LOSS_BUDGET[torch.bfloat16 if "bf16" in case else torch.float32]
        workload.gate(case, losses[case], losses["plain fp32"], budget)
    return losses


def cutting(config: DINOConfig, batch: int) -> Callable[[], Tensor]:
    """Cuts the crops of a batch of stored images; returns one of them."""
    pixels = torch.randint(0, 256, (batch, STORED_SIZE, STORED_SIZE), dtype=torch.uint8)
    number = torch.arange(batch)
    images = Images(pixels, torch.full((batch, 2), STORED_SIZE), torch.zeros_like(number), number)
    recipe = CropRecipe(global_size=config.vit.image_size, local_size=config.local_size, n_local=config.n_local)
    return lambda: cut_crops(images, recipe, step=torch.zeros(1, dtype=torch.int64), seed=0)[0]


def seconds_of_parts(step: Callable[[], Tensor]) -> dict[str, float]:
    """Seconds of a step in each of PARTS and in the rest, by PyTorch's profiler: of the thread that starts them, the
    mean of PROFILED_STEPS."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        for _ in range(PROFILED_STEPS):
            step()
    found = dict.fromkeys([*PARTS, "rest"], 0.0)
    for event in profiled.key_averages():
        part = next((part for part, names in PARTS.items() if event.key.startswith(names)), "rest")
        found[part] += event.self_cpu_time_total / 1e6 / PROFILED_STEPS
    return found


def compare(preset: str, args: argparse.Namespace) -> dict:
    """What was measured of a preset."""
    contest = Contest(config_of(preset), args.batch)
    losses = check(contest)
    seconds = time_in_turn(contest.steps | {"crops": cutting(contest.config, args.batch)}, args.rounds)
    parts = {case: seconds_of_parts(contest.steps[case]) for case in PROFILED}
    del contest
    memory = []
    if args.memory:
        given = ["--presets", preset, "--batch", str(args.batch)]
        peaks = peaks_of(__file__, given, dict.fromkeys(name for row in MEMORY for name in row[:2]))
        memory = [
            {"ours": ours, "reference": plain, "ours_mib": peaks[ours], "reference_mib": peaks[plain],
             "ratio": peaks[ours] / peaks[plain], "target": target}
            for ours, plain, target in MEMORY
        ]  # fmt: skip
    return {
        "preset": preset, "loss": losses, "seconds": seconds, "parts": parts,
        "speedups": [ratio_row(ours, plain, seconds, target) for ours, plain, target in SPEEDS], "memory": memory,
    }  # fmt: skip


def table(about: dict, result: dict) -> str:
    """Of one preset, as markdown."""
    median = {case: statistics.median(seconds) for case, seconds in result["seconds"].items()}
    lines = [
        f"{result['preset']}, batch {about['batch']}, {about['cpu']}, {about['threads']} threads, "
        f"{about['rounds']} rounds in turn, {about['date']}; cutting the crops takes {1e3 * median['crops']:.0f} ms",
        "", "| case | against | s | s | times as fast (range) | target |", "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in result["speedups"]:
        lines.append(
            f"| {row['ours']} | {row['reference']} | {median[row['ours']]:.3f} | {median[row['reference']]:.3f} | "
            f"**{row['speedup']:.2f}** ({row['low']:.2f}-{row['high']:.2f}) | {row['target'] or ''} |"
        )
    if result["memory"]:
        lines += ["", "| peak memory | against | MiB | MiB | ratio | target |", "|---|---|---|---|---|---|"]
        for row in result["memory"]:
            lines.append(
                f"| {row['ours']} | {row['reference']} | {row['ours_mib']:.0f} | {row['reference_mib']:.0f} | "
                f"**{row['ratio']:.2f}** | {row['target'] or ''} |"
            )
    lines += ["", *parts_in_words(result)]
    return "\n".join(lines)


def parts_in_words(result: dict) -> list[str]:
    """Where the time of each of PROFILED goes, and how fast it would be if the rest took none."""
    median = {case: statistics.median(seconds) for case, seconds in result["seconds"].items()}
    found = []
    for case, parts in result["parts"].items():
        shares = {part: seconds / sum(parts.values()) for part, seconds in parts.items()}
        said = ", ".join(f"{part} {share:.0%}" for part, share in shares.items())
        least = median[case] * (1 - shares["rest"])
        found.append(
            f"{case}: {said}; without the rest it would be {median['plain fp32'] / least:.2f} times as fast as plain "
            "fp32"
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=PRESETS)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--memory", action="store_true", help="peak memory too")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=checkout.ROOT / "benchmarks" / "results", metavar="DIR")
    parser.add_argument("--peak-of", metavar="CASE", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.peak_of:
        step = Contest(config_of(*args.presets), args.batch).steps[args.peak_of]
        step()
        print(json.dumps(peak_above_resident(step)))
        return
    about = {
        "date": conditions.now(), "commit": conditions.commit(), "cpu": conditions.cpu_model(),
        "threads": torch.get_num_threads(), "versions": conditions.versions(), "batch": args.batch,
        "rounds": args.rounds, "step": "forward, backward, clipping, AdamW and the teacher's average",
    }  # fmt: skip
    result = {"conditions": about, "presets": [compare(preset, args) for preset in args.presets]}
    path = args.out / f"dino-{about['date']}.json"
    conditions.write_json(path, result)
    tables = [table(about, preset) for preset in result["presets"]]
    print("\n\n".join([*tables, f"written to {path}"]))


if __name__ == "__main__":
    main()
