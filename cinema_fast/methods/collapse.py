"""Notices when the outputs of self-distillation collapse (Caron et al., ICCV 2021, section 5.3).

The entropy of the teacher's mean output is entropy + KL of the single outputs to their mean. Outputs collapse in two
ways: all images share a few prototypes, and this entropy vanishes (as without centring); or all images get the same
output, however flat, and the KL vanishes (as without sharpening). Either is judged by its own highest value in the run,
as what is normal depends on temperature, batch and network; and by a floor, in case that it was never higher. The first
way may be slow. It has begun when both fall: in a healthy run outputs sharpen too, but then the KL rises. (In twenty
such runs the entropy of the mean output was at its highest whenever the KL was below half of its own.)
"""

import math

SMOOTHED = 20  # steps over which figures are averaged
FEW_PROTOTYPES = 0.2  # entropy of the mean output, as a share of its highest
FALLING = 0.75, 0.5  # of either, as shares of their highest, when both fall
ALIKE, ALIKE_NATS = 0.05, 0.05  # KL to the mean, as a share of its highest; and not above so many nats
FLOORS = 0.1, 1e-3  # nats of either that are too few in any run
SETTLED = 50  # steps before the floors count, in which the centre is not yet found


class CollapseWatch:
    """Takes the figures of each line of metrics.jsonl, and words one warning in a run.

    prototypes: number of the model's, and whether outputs are centred: for the message.
    """

    def __init__(self, prototypes: int, *, centring: bool = True):
        self._prototypes, self._centring = prototypes, centring
        self._step = 0
        self._means, self._highest = [0.0, 0.0], [0.0, 0.0]  # of the entropy of the mean output, and of the KL
        self._named = False

    def add(self, step: int, *, teacher_entropy: float, kl_to_mean: float) -> str:
        """A warning, or "". Means, in nats, over the steps since the last call, up to `step`."""
        figures = teacher_entropy + kl_to_mean, kl_to_mean
        keep = math.exp((self._step - step) / SMOOTHED) if self._step else 0.0
        self._means = [keep * mean + (1 - keep) * now for mean, now in zip(self._means, figures)]
        self._highest = [max(pair) for pair in zip(self._highest, self._means)]
        self._step = step
        shares = [mean / most if most else 1.0 for mean, most in zip(self._means, self._highest)]
        if self._named or not all(map(math.isfinite, self._means)):
            return ""
        used, kl = math.exp(self._means[0]), self._means[1]
        few, alike = (mean < floor and step >= SETTLED for mean, floor in zip(self._means, FLOORS))
        falling = all(share < most for share, most in zip(shares, FALLING))
        if shares[0] < FEW_PROTOTYPES or few or falling:
            cure = "at a higher --dino.teacher-temp or a lower --lr" if self._centring else "with --dino.centring on"
            said = (f"all images share about {used:.3g} of {self._prototypes} prototypes, at most "
                    f"{math.exp(self._highest[0]):.3g} before. Train {cure}")  # fmt: skip
        elif (shares[1] < ALIKE and kl < ALIKE_NATS) or alike:
            said = (f"all images get nearly the same output, {kl:.2g} nats from the mean one, at most "
                    f"{self._highest[1]:.2g} before. Train at a lower --dino.teacher-temp (0.02 to 0.04), with more "
                    "images a step, or at a lower --lr")  # fmt: skip
        else:
            return ""
        self._named = True
        return f"warning: step {step}: the outputs collapse: {said}"

    def state(self) -> dict:
        """Plain values that `restore` takes."""
        return {"step": self._step, "means": self._means, "highest": self._highest, "named": self._named}

    def restore(self, state: dict) -> None:
        """Continue from a saved state."""
        self._step, self._named = state["step"], state["named"]
        self._means, self._highest = list(state["means"]), list(state["highest"])
