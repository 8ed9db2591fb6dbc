"""Libraries that only the downstream commands need: the optional extra `downstream`."""

import importlib
from types import ModuleType


def need(module: str, what: str) -> ModuleType:
    """Import a module of MONAI, scikit-learn or Jinja2. ValueError, which says what needs it, where it is missing."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(f"{what} by {module.split('.')[0]}, which does not load ({error}): "
                         "pip install 'cinema-fast[downstream]'") from error  # fmt: skip
