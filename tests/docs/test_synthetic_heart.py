"""The tables of docs/explanation/synthetic-heart.md against the code that they describe."""

import re
from pathlib import Path

from cinema_fast.common.sequences import SEQUENCES
from cinema_fast.common.structures import STRUCTURES
from cinema_fast.phantom.outcome import EFFECTS, INTERCEPTS
from cinema_fast.phantom.sequences import PROTOCOLS
from cinema_fast.phantom.tissue import TISSUES

PAGE = Path(__file__).parents[2] / "docs" / "explanation" / "synthetic-heart.md"


def table(*columns: str) -> list[list[str]]:
    """The rows of the page's table with these first columns."""
    lines = iter(PAGE.read_text(encoding="utf-8").splitlines())
    next(line for line in lines if line.startswith(f"| {' | '.join(columns)} |"))
    assert set(next(lines)) <= set("|- ")
    rows = []
    while (line := next(lines, "")).startswith("|"):
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def test_tissues():
    rows = table("tissue", "T1 (ms)", "T2 (ms)", "proton density", "uptake")
    assert {"blood", "myocardium", "scar", "no-reflow", "oedema"} <= {row[0] for row in rows}
    for name, *values in rows:
        assert tuple(map(float, values)) == TISSUES[name]


def test_sequences_and_views():
    rows = {row[0].strip("`"): re.findall("`(.*?)`", row[1]) for row in table("`--sequences`", "views")}
    assert tuple(rows) == tuple(PROTOCOLS) == SEQUENCES
    for name, views in rows.items():
        assert tuple(views) == tuple(plane if name == "cine" else f"{name}_{plane}" for plane in PROTOCOLS[name].planes)


def test_labels():
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    (at,) = (n for n, line in enumerate(lines) if line.startswith("| label |"))
    labels, _, names = ([cell.strip() for cell in line.strip("|").split("|")][1:] for line in lines[at : at + 3])
    assert dict(zip(map(int, labels), names)) == STRUCTURES


def test_effects():
    head, *rows = table("covariate", "column", "unit", "reference", "hypertension", "diabetes", "event")
    assert head[4:6] == [f"{INTERCEPTS[name]:.2f}" for name in ("hypertension", "diabetes")]
    planted = {(of, name): effect for of, effects in EFFECTS.items() for name, effect in effects.items()}
    for _, column, unit, reference, *log_ratios in rows:
        for of, log_ratio in zip(("hypertension", "diabetes", "event"), log_ratios):
            effect = planted.pop((of, column.strip("`")), None)
            assert log_ratio == (f"{effect.log_ratio:+.2f}" if effect else "")
            if effect and unit != "yes":
                assert (float(unit.split()[0]), float(reference)) == (effect.per, effect.reference)
    assert planted == {}
