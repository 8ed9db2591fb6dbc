"""The fate of synthetic patients: the planted effects, found again by models that do not know them."""

import math
from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
from lifelines import CoxPHFitter
from scipy import stats
from sklearn.linear_model import LogisticRegression

from cinema_fast.phantom import outcome
from cinema_fast.phantom.cohort import TRUTH_COLUMNS
from cinema_fast.phantom.outcome import covariates, draw_outcome
from cinema_fast.phantom.study import make_study
from cinema_fast.phantom.subject import draw_subject, draw_truths

SMALL = {"n_frames": 3, "in_plane_mm": 6.0, "n_slices": 2}
# As documented: per how much of the covariate, and above which value.
UNITS = {"age": (10, 50), "bmi": (5, 25), "mass_to_volume": (0.2, 0.9), "heart_ef": (10, 60), "scar_percent": (5, 0),
         "myocardial_mass_g": (20, 130), "hypertension": (1, 0), "diabetes": (1, 0)}  # fmt: skip
HAZARD = {"heart_ef": -0.35, "scar_percent": 0.40, "age": 0.40, "myocardial_mass_g": 0.12, "hypertension": 0.25,
          "diabetes": 0.45}  # fmt: skip
ODDS = {"hypertension": (-0.6, {"age": 0.50, "bmi": 0.40, "mass_to_volume": 0.35}),
        "diabetes": (-2.0, {"age": 0.35, "bmi": 0.60, "hypertension": 0.50})}  # fmt: skip
SHAPE, YEARS, FOLLOW_UP, LOSS = 1.2, 45.0, 10.0, 0.03


@pytest.fixture(scope="module")
def table():
    return pd.DataFrame(draw_truths(600, 3))


@pytest.fixture(scope="module")
def many():
    """300 hearts with 40 fates each: given its heart, a fate is independent of the others."""
    rng = np.random.default_rng(8)
    hearts = [draw_subject((4, i))[:3] for i in range(300)]
    return pd.DataFrame([
        covariates(*heart) | asdict(draw_outcome(rng, *heart)) | {"wall_mm": heart[0].heart.wall_mm}
        for heart in hearts for _ in range(40)
    ])  # fmt: skip


def in_units(rows, names):
    return pd.DataFrame({name: (rows[name] - UNITS[name][1]) / UNITS[name][0] for name in names})


def log_partial_likelihood(log_hazard, rows):
    order = np.argsort(-rows["time_years"].to_numpy())
    log_hazard, event = log_hazard[order], rows["event"].to_numpy()[order]
    return (log_hazard - np.logaddexp.accumulate(log_hazard))[event == 1].sum()


@pytest.mark.parametrize("of", ["table", "many"])
def test_cox_regression_recovers_the_hazard(of, request):
    rows = request.getfixturevalue(of)
    x = in_units(rows, HAZARD)
    cox = CoxPHFitter().fit(x.assign(t=rows["time_years"], event=rows["event"]), "t", "event")
    true, error = pd.Series(HAZARD), cox.standard_errors_
    assert ((cox.params_ - true).abs() < 3 * error).all()
    if of == "many":
        assert (true.abs() > 5 * error).all()  # so no effect, or one with the wrong sign or unit, would be found
    deviance = 2 * (cox.log_likelihood_ - log_partial_likelihood(x.to_numpy() @ true.to_numpy(), rows))
    assert 0 <= deviance < stats.chi2.ppf(0.99, len(true))
    assert cox.score(x.assign(t=rows["time_years"], event=rows["event"]), "concordance_index") > 0.7


@pytest.mark.parametrize("name", ODDS)
def test_logistic_regression_recovers_the_odds(name, many):
    intercept, effects = ODDS[name]
    x = in_units(many, effects).to_numpy()
    fit = LogisticRegression(C=np.inf, tol=1e-8).fit(x, many[name])
    chance = fit.predict_proba(x)[:, 1]
    x = np.column_stack([np.ones(len(x)), x])
    information = x.T @ (x * (chance * (1 - chance))[:, None])
    true = np.array([intercept, *effects.values()])
    off = np.concatenate([fit.intercept_, fit.coef_[0]]) - true
    error = np.sqrt(np.diag(np.linalg.inv(information)))
    assert (np.abs(off) < 3 * error).all() and (np.abs(true) > 5 * error).all()
    assert off @ information @ off < stats.chi2.ppf(0.99, len(true))


def test_the_law_of_time(many):
    """The cumulative hazard at the event is unit exponential. Of those without an event it is known to be larger; the
    exponential law has no memory, so what is missing is again unit exponential."""
    log_hazard = in_units(many, HAZARD).to_numpy() @ list(HAZARD.values())
    np.testing.assert_allclose(many["log_hazard"], log_hazard, atol=1e-12)
    rest = np.random.default_rng(0).exponential(size=(2, len(many)))
    time, event = many["time_years"], many["event"] == 1
    cumulative = (time / YEARS) ** SHAPE * np.exp(log_hazard)
    assert stats.kstest(cumulative + np.where(event, 0, rest[0]), stats.expon.cdf).pvalue > 0.01
    lost = ~event & (time < FOLLOW_UP)
    assert stats.kstest(LOSS * time + np.where(lost, 0, rest[1]), stats.expon.cdf).pvalue > 0.01
    assert time.min() > 0 and time.max() == FOLLOW_UP


def test_loss_to_follow_up_does_not_depend_on_the_patient(many):
    lost = (many["event"] == 0) & (many["time_years"] < FOLLOW_UP)
    x = in_units(many, HAZARD).assign(t=many["time_years"], lost=lost)
    assert 0.1 < lost.mean() < 0.3
    assert CoxPHFitter().fit(x, "t", "lost").log_likelihood_ratio_test().p_value > 0.01


def test_share_of_events(table, many):
    """Expected: the integral of the event's density, times the probability not to be lost, over the follow-up."""
    assert 0.25 < table["event"].mean() < 0.40
    t = (np.arange(100) + 0.5) / 100 * FOLLOW_UP
    cumulative = np.exp(many["log_hazard"].to_numpy())[:, None] * (t / YEARS) ** SHAPE
    density = cumulative * SHAPE / t * np.exp(-cumulative - LOSS * t)
    expected = density.sum(axis=1) * FOLLOW_UP / 100
    spread = math.sqrt((expected * (1 - expected)).sum())
    assert abs(many["event"].sum() - expected.sum()) < 3 * spread


def test_hypertensive_patients_have_thicker_walls(many):
    wall = many.groupby("hypertension")["wall_mm"].mean()
    assert wall[1] > wall[0] + 0.5


def test_the_exported_effects_are_the_documented_ones():
    documented = {"event": HAZARD} | {name: effects for name, (_, effects) in ODDS.items()}
    in_full = {of: {x: (ratio, *UNITS[x]) for x, ratio in effects.items()} for of, effects in documented.items()}
    assert in_full == outcome.EFFECTS


def test_a_row_is_the_truth_of_the_study():
    rows = draw_truths(3, 5)
    assert {row["scar_pattern"] for row in rows} == {"", "ischaemic", "mid-wall"}
    assert draw_truths(2, 5) == rows[:2] != draw_truths(2, 6)
    for i, row in enumerate(rows):
        truth = make_study((5, i), **SMALL).truth()
        assert {"hypertension", "diabetes", "event", "time_years", "log_hazard", "scar_percent", "age"} < row.keys()
        assert row.keys() <= set(TRUTH_COLUMNS) and row == {name: truth[name] for name in row}
        assert row["heart_ef"] == 100 * truth["heart"]["ef"]
        assert row["mass_to_volume"] == pytest.approx(truth["myocardial_mass_g"] / truth["edv_ml"])
        assert {type(row[name]) for name in ("hypertension", "diabetes", "event")} == {int}


def test_all_scans_of_a_heart_have_its_fate():
    one = make_study((5, 1), **SMALL)
    others = ({"scan": 1}, {"n_frames": 7}, {"in_plane_mm": 5.0}, {"n_slices": 4}, {"sequences": ("lge",)})
    assert {make_study((5, 1), **SMALL | other).outcome for other in others} == {one.outcome}
    assert make_study((5, 2), **SMALL).outcome != one.outcome


@pytest.mark.parametrize(("n", "seed"), [(0, 1), (1, -1)])
def test_a_table_refuses_numbers_out_of_range(n, seed):
    with pytest.raises(ValueError, match="n must be at least 1 and seed at least 0"):
        draw_truths(n, seed)
