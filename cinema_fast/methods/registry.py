"""The self-supervised methods, by the kind of their presets."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from ..models.config import preset
from ..train.method import Method, Place
from .pretrain_config import PretrainConfig

_METHODS: dict[type, type[Method]] = {}


def method_for(kind: type) -> Callable[[type[Method]], type[Method]]:
    """Class decorator that registers a method for presets of this kind; it is called with (options, preset, place)."""

    def register(method: type[Method]) -> type[Method]:
        _METHODS[kind] = method
        return method

    return register


def make_method(options: PretrainConfig, place: Place) -> Method:
    """The method of --preset. Raises ValueError where options do not fit."""
    for path in Path(__file__).parent.glob("*.py"):  # importing a file registers its method
        import_module(f".{path.stem}", __package__)
    chosen = preset(options.preset)
    return _METHODS[type(chosen)](options, chosen, place)
