"""The tasks by name. A new task is a file of its own and a line here; a task is imported when it is needed."""

from collections.abc import Mapping
from pkgutil import resolve_name

TASKS = {
    "segmentation": "cinema_fast.tasks.segmentation:Segmentation",
    "regression": "cinema_fast.tasks.table_targets:TableTask",
    "classification": "cinema_fast.tasks.table_targets:TableTask",
    "landmarks": "cinema_fast.tasks.landmarks:Landmarks",
    "multitask": "cinema_fast.tasks.table_targets:TableTask",
}


def task_class(name: str) -> type:
    """The class of a task, a `Task`. Raises ValueError where no task has the name."""
    if name not in TASKS:
        raise ValueError(f"unknown task ({name!r}; expected one of {', '.join(TASKS)})")
    return resolve_name(TASKS[name])


def task_from_dict(values: Mapping):
    """The `Task` from a run's config.yaml. Raises ValueError where the values are not those of a task."""
    try:
        return task_class(values["kind"]).from_dict(values)
    except (TypeError, KeyError) as error:
        raise ValueError(f"unknown task ({error})") from error
