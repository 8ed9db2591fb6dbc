"""The faults fit the code that they are planted in, and tests cover it."""

from pathlib import Path

import pytest
from covering import Covering
from faults import FAULTS, Fault
from run import _how_it_ended

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def covering():
    return Covering(ROOT)


def test_there_are_thirty_spread_over_the_project():
    assert len(FAULTS) == len({fault.name for fault in FAULTS}) == 30
    of = [fault.file.removeprefix("cinema_fast/").partition("/")[0] for fault in FAULTS]
    kernels = of.count("kernels") + of.count("csrc")
    assert kernels >= 9 and of.count("data") >= 6 and of.count("train") >= 6
    assert of.count("tasks") + of.count("metrics") >= 5 and sum(fault.interpreter for fault in FAULTS) >= 5


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_fault_fits_its_file_and_tests_cover_it(fault, covering):
    before = (ROOT / fault.file).read_text(encoding="utf-8")
    planted = fault.planted(before)
    assert planted != before
    if fault.file.endswith(".py"):
        compile(planted, fault.file, "exec")
    tests = covering.tests_of(fault.file)
    assert tests and all((ROOT / test).is_file() for test in tests)
    assert not any("mutants" in Path(test).parts for test in tests)


@pytest.mark.parametrize("text", ["", "a = 1\na = 1\n"])
def test_a_stale_fault_is_refused(text):
    with pytest.raises(ValueError, match="fault f is stale"):
        Fault("f", "", "a.py", "a = 1", "a = 2").planted(text)


def test_tests_of_a_file_are_found_in_any_folder(tmp_path):
    """By imports of the module, by a package that hands its name on, by helpers, and by a module in between."""
    files = {
        "cinema_fast/__init__.py": "",
        "kernels/__init__.py": "from .flow import (\n    move as move,  # a name of another module\n)\n",
        "kernels/flow.py": "",
        "cinema_fast/train/__init__.py": "",
        "cinema_fast/train/loop.py": "from ..kernels import move\n",
        "cinema_fast/train/registry.py": "LOOP = 'cinema_fast.train.loop:Loop'\n",
        "tests/cases.py": "from cinema_fast.kernels import flow\n",
        "tests/test_by_helper.py": "from cases import x\n",
        "tests/test_other.py": "import cinema_fast\n",
        "tests/kernels/test_zoom.py": "def test():\n    from cinema_fast.kernels import move\n",
        "tests/kernels/test_flow.py": "from cinema_fast.kernels.flow import move\n",
        "tests/mutants/test_faults.py": "from cinema_fast.kernels.flow import move\n",
        "tests/train/test_run.py": "from cinema_fast.train.loop import run\n",
        "tests/train/test_by_name.py": "from cinema_fast.train.registry import LOOP\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    covering = Covering(tmp_path)
    near = ["tests/kernels/test_flow.py", "tests/kernels/test_zoom.py"]
    far = ["tests/train/test_run.py", "tests/train/test_by_name.py"]
    assert covering.tests_of("kernels/flow.py") == [*near, "tests/test_by_helper.py", *far]
    assert covering.tests_of("csrc/flow_cpu.cpp") == covering.tests_of("kernels/flow.py")
    assert covering.tests_of("cinema_fast/train/loop.py") == far
    for test in (*near, "tests/test_by_helper.py"):
        (tmp_path / test).unlink()
    assert Covering(tmp_path).tests_of("kernels/flow.py") == far


@pytest.mark.parametrize(("output", "status", "how", "test"), [
    ("3 passed in 0.1s\n", 0, "passed", ""),
    ("3 deselected in 0.1s\n", 5, "nothing", ""),
    ("F\nFAILED tests/a/test_b.py::test_c[x y] - assert 1\n1 failed\n", 1, "failed", "tests/a/test_b.py::test_c[x y]"),
    ("E\nERROR tests/test_b.py::test_c\n1 error\n", 1, "failed", "tests/test_b.py::test_c"),
    ("ERROR tests/test_b.py - ImportError: x\n1 error\n", 2, "import", "tests/test_b.py"),
    ("Fatal Python error: Segmentation fault\n", -11, "crash", ""),
    (None, -9, "limit", ""),
])  # fmt: skip
def test_it_sees_how_pytest_ended(output, status, how, test):
    ended = _how_it_ended(output, status, 1.0)
    assert (ended.how, ended.test, ended.caught) == (how, test, how in ("failed", "import", "crash"))


def test_an_end_that_says_nothing_is_an_error():
    with pytest.raises(RuntimeError, match="status 4 and names no test"):
        _how_it_ended("ERROR: file or directory not found: tests/x.py\n", 4, 1.0)
