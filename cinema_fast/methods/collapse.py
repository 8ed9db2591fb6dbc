"""Notices when the outputs of self-distillation collapse."""


class CollapseWatch:
    def __init__(self, prototypes: int):
        pass

    def add(self, step: int, *, teacher_entropy: float, kl_to_mean: float) -> str:
        return ""

    def state(self) -> dict:
        return {}

    def restore(self, state: dict) -> None:
        pass
