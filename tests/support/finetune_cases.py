"""Options of short fine-tuning runs, a set for each kind of task."""


FEW = {"steps": 3, "validate_every": 3}


TASKS = {
    "segmentation": {"task": "segmentation", "accumulate": 2},
    "heatmaps": {"task": "landmarks"},
    "coordinates": {"task": "landmarks", "landmarks": "coordinates"},
    "classification": {"task": "classification", "reduce": "cls"},
    "multitask": {"task": "multitask", "views": ("sax",), "reduce": "patch"},
    "clips": {"task": "regression", "preset": "heartmae-tiny", "views": ("sax",)},
}
