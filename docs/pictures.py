"""Makes the pictures of the pages that no experiment writes: python docs/pictures.py.

docs/phantom.png is a synthetic study, docs/sequences.png one with an acute infarct in every sequence.
docs/reconstruction.png is the report of `make demo`, which has to have run.
"""

import shutil
from pathlib import Path

from cinema_fast.common.sequences import SEQUENCES
from cinema_fast.phantom.figure import draw_phantom
from cinema_fast.phantom.sequence_figure import draw_sequences
from cinema_fast.phantom.study import make_study

HERE = Path(__file__).parent

draw_phantom(make_study(9), HERE / "phantom.png")
draw_sequences(make_study(7, sequences=SEQUENCES, atria=True), HERE / "sequences.png")
shutil.copy(HERE.parent / "demo" / "run" / "report" / "reconstruction.png", HERE)
