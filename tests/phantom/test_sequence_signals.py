"""The signal of every tissue in every sequence: against the equations in closed form and a simulation of the spins.

The simulation follows the magnetisation vector (Mx, My, Mz) through pulses and pauses. Each is an affine map, and the
steady state is the fixed point of the maps of one repetition: no equation of a sequence goes into it.
"""

import math
from functools import reduce

import numpy as np
import pytest

from cinema_fast.phantom.scanner import SCANNERS, STANDARD
from cinema_fast.phantom.sequences import PROTOCOLS, UNITS, Palette, enhanced_t1_ms, map_palettes, signals
from cinema_fast.phantom.tissue import TISSUES

ALL = {"standard": STANDARD, **SCANNERS}
BEAT_MS = 850.0
NAMES = [name for name in TISSUES if name != "air"]

scanners = pytest.mark.parametrize("scanner", ALL.values(), ids=ALL)
tissues = pytest.mark.parametrize("name", NAMES)


def pulse(degrees, axis="x"):
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    turn = [[1, 0, 0], [0, c, -s], [0, s, c]] if axis == "x" else [[c, 0, s], [0, 1, 0], [-s, 0, c]]
    return np.array(turn), np.zeros(3)


def pause(ms, t1, t2):
    e1, e2 = math.exp(-ms / t1), math.exp(-ms / t2)
    return np.diag([e2, e2, e1]), np.array([0, 0, 1 - e1])


SPOIL = np.diag([0.0, 0.0, 1.0]), np.zeros(3)


def after(*steps):
    """One affine map for `steps` in turn."""
    return reduce(lambda first, then: (then[0] @ first[0], then[0] @ first[1] + then[1]), steps)


def steady(*steps):
    """The magnetisation after `steps`, once they have been repeated for ever."""
    a, b = after(*steps)
    return np.linalg.solve(np.eye(3) - a, b)


def test_the_simulation_relaxes_and_turns():
    """The oracle itself: a pulse of 90 degrees, then T1 and T2; Ernst's steady state of spoiled gradient echoes."""
    m = after(pulse(90), pause(40, 800, 60))
    now = m[0] @ [0, 0, 1] + m[1]
    np.testing.assert_allclose(now, [0, -math.exp(-40 / 60), 1 - math.exp(-40 / 800)], atol=1e-12)
    e1, flip = math.exp(-10 / 800), math.radians(20)
    ernst = math.sin(flip) * (1 - e1) / (1 - math.cos(flip) * e1)
    assert -steady(SPOIL, pause(10, 800, 60), pulse(20))[1] == pytest.approx(ernst)


@scanners
@tissues
def test_cine_is_the_balanced_steady_state(name, scanner):
    """Pulses of alternating phase, 3 ms apart, the echo half-way. Of the blood 34 % meets its first pulse of half the
    angle. Whole units, so within half a unit."""
    tissue, flip = TISSUES[name], scanner.cine_flip_deg
    times = tissue.t1_ms, tissue.t2_ms
    m = steady(pause(3, *times), pulse(-flip), pause(3, *times), pulse(flip))
    echo = np.linalg.norm((pause(1.5, *times)[0] @ m)[:2])
    if name == "blood":
        echo = 0.66 * echo + 0.34 * math.sin(math.radians(flip / 2)) * math.exp(-1.5 / tissue.t2_ms)
    found = signals("cine", scanner)[name]
    assert found == round(found)
    assert abs(found - 1600 * tissue.proton_density * echo) <= 0.5 + 1e-9


def inversion_recovery(inversion_ms, repetition_ms, t1, t2, *readout):
    """Mz when the readout begins; `readout` takes its time from the recovery. By default it uses up what there is."""
    readout, length = readout or ((pulse(90), SPOIL), 0.0)
    m = steady(*readout, pause(repetition_ms - inversion_ms - length, t1, t2), SPOIL, pulse(180), SPOIL,
               pause(inversion_ms, t1, t2), SPOIL)  # fmt: skip
    return m[2]


def null_by_bisection(repetition_ms, t1):
    low, high = 1.0, repetition_ms - 1
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if inversion_recovery(middle, repetition_ms, t1, 50) < 0 else (low, middle)
    return low


@scanners
@tissues
def test_lge_is_an_inversion_recovery_every_second_beat(name, scanner):
    tissue, healthy = TISSUES[name], TISSUES["myocardium"]
    inversion = scanner.lge_inversion * null_by_bisection(2 * BEAT_MS, enhanced_t1_ms(healthy))
    mz = inversion_recovery(inversion, 2 * BEAT_MS, enhanced_t1_ms(tissue), tissue.t2_ms)
    echo = math.sin(math.radians(25)) * math.exp(-3 / tissue.t2_ms)
    expected = 1.8 * 1600 * tissue.proton_density * echo * mz  # with its sign
    assert signals("lge", scanner)[name] == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_late_enhancement_with_a_train_of_pulses():
    """The equation takes the readout as one pulse that uses up the magnetisation. With 25 pulses of 25 degrees, one
    every 6 ms, healthy muscle is nulled at another time; a little above it the contrast is that of the table."""
    length, n = 150.0, 25

    def mz(name, inversion):
        tissue = TISSUES[name]
        times = enhanced_t1_ms(tissue), tissue.t2_ms
        train = [step for _ in range(n) for step in (pulse(25), SPOIL, pause(length / n, *times))]
        return tissue.proton_density * inversion_recovery(inversion, 2 * BEAT_MS, *times, train, length)

    low, high = 1.0, 1000.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if mz("myocardium", middle) < 0 else (low, middle)
    at = {name: mz(name, 1.08 * low) for name in ("myocardium", "scar", "no-reflow", "oedema", "blood")}
    table = signals("lge")
    for name in ("myocardium", "oedema", "blood"):
        assert at[name] / at["scar"] == pytest.approx(table[name] / table["scar"], abs=0.07)
    assert at["no-reflow"] < 0 > table["no-reflow"]


def test_contrast_agent_of_15_minutes():
    """Post-contrast T1 of healthy muscle, scar and blood are near 500, 300 and 400 ms at 1.5 T; ratios follow the
    relaxivity: 1 / T1 rises by 4.5 per s and mM x 0.75 mM x the share of the volume that the agent reaches."""
    for tissue in TISSUES.values():
        rise = 1e3 * (1 / enhanced_t1_ms(tissue) - 1 / tissue.t1_ms)
        assert rise == pytest.approx(4.5 * 0.75 * tissue.uptake, rel=0.01)
        assert 0 <= tissue.uptake < 1
    assert 450 < enhanced_t1_ms(TISSUES["myocardium"]) < 580
    assert 250 < enhanced_t1_ms(TISSUES["scar"]) < 350 < enhanced_t1_ms(TISSUES["blood"]) < 450


@scanners
@tissues
def test_t2w_is_an_inversion_recovery_spin_echo(name, scanner):
    tissue = TISSUES[name]
    inversion = 1.1 * null_by_bisection(3 * BEAT_MS, TISSUES["fat"].t1_ms)
    mz = inversion_recovery(inversion, 3 * BEAT_MS, tissue.t1_ms, tissue.t2_ms)
    echo = -mz * math.exp(-scanner.t2w_echo_ms / tissue.t2_ms) * (0.06 if name == "blood" else 1)
    assert signals("t2w", scanner)[name] == pytest.approx(1.6 * 1600 * tissue.proton_density * echo, rel=1e-6)


@scanners
@tissues
def test_t1w_is_a_spin_echo(name, scanner):
    tissue = TISSUES[name]
    times = tissue.t1_ms, tissue.t2_ms
    before = steady(pulse(90), SPOIL, pause(BEAT_MS, *times))
    echo = np.linalg.norm(after(pulse(90), pause(10, *times))[0][:2] @ before) * (0.06 if name == "blood" else 1)
    assert signals("t1w", scanner)[name] == pytest.approx(0.4 * 1600 * tissue.proton_density * echo, rel=1e-9)


@scanners
def test_refocusing_changes_spin_echoes_little(scanner):
    """The equations leave out what the refocusing pulse does to Mz. With it, muscle's signals are within 3 %."""
    for name in ("myocardium", "scar", "no-reflow", "oedema"):
        tissue = TISSUES[name]
        times = tissue.t1_ms, tissue.t2_ms

        def spin_echo(ms, times=times):
            return pulse(90), pause(ms / 2, *times), pulse(180, "y"), pause(ms / 2, *times)

        ms = scanner.t2w_echo_ms
        inversion = 1.1 * null_by_bisection(3 * BEAT_MS, TISSUES["fat"].t1_ms)
        mz = inversion_recovery(inversion, 3 * BEAT_MS, *times, (*spin_echo(ms), SPOIL), ms)
        t2w = np.linalg.norm(after(*spin_echo(ms))[0][:2] @ [0, 0, mz])
        mz = steady(*spin_echo(10), SPOIL, pause(BEAT_MS - 10, *times))
        t1w = np.linalg.norm(after(*spin_echo(10))[0][:2] @ mz)
        assert signals("t2w", scanner)[name] == pytest.approx(1.6 * 1600 * tissue.proton_density * t2w, rel=0.03)
        assert signals("t1w", scanner)[name] == pytest.approx(0.4 * 1600 * tissue.proton_density * t1w, rel=0.03)


@scanners
def test_injured_muscle_looks_healthy_in_a_cine(scanner):
    drawn = signals("cine", scanner)
    assert all(abs(drawn[name] - drawn["myocardium"]) <= 1 for name in ("scar", "no-reflow", "oedema"))


def test_air_is_silent_and_every_signal_fits_the_image():
    """uint16, written as int16: the largest gain x the coil's strongest sensitivity (about 3) must not wrap."""
    for scanner in ALL.values():
        for sequence in PROTOCOLS:
            if PROTOCOLS[sequence].signal:
                drawn = signals(sequence, scanner)
                assert drawn["air"] == 0 and (sequence in ("lge", "t2w") or min(drawn.values()) >= 0)
                assert max(map(abs, drawn.values())) * scanner.gain[1] * 1.1 * 3 < 32768


@pytest.mark.parametrize(("sequence", "time"), [("t1map", "t1_ms"), ("t2map", "t2_ms")])
def test_palettes_of_a_map(sequence, time):
    """Their quotient is the tissue's time; two tissues in a voxel count by their protons."""
    protons, weighted = map_palettes(sequence)
    assert isinstance(protons, Palette)
    for name in NAMES:
        assert protons[name] == pytest.approx(UNITS * TISSUES[name].proton_density)
        assert weighted[name] / protons[name] == pytest.approx(getattr(TISSUES[name], time))
        assert weighted.tone(name) / protons.tone(name) == pytest.approx(getattr(TISSUES[name], time))
    assert protons["air"] == weighted["air"] == protons.tone("air") == 0


def test_relaxation_times_are_possible():
    """T2 <= T1; and injured muscle has the T1 / T2 of healthy muscle but longer times."""
    assert all(t.t2_ms <= t.t1_ms and t.t2_ms > 0 and 0 <= t.proton_density <= 1 for t in TISSUES.values())
    healthy = TISSUES["myocardium"]
    for name in ("scar", "no-reflow", "oedema"):
        hurt = TISSUES[name]
        assert hurt.t1_ms / hurt.t2_ms == pytest.approx(healthy.t1_ms / healthy.t2_ms)
        assert hurt.t1_ms > healthy.t1_ms
