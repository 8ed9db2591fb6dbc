"""`pytest benchmarks --benchmark-only` runs the bench_*.py files; with --smoke at toy sizes, which is not a timing."""

import checkout  # noqa: F401
import pytest

SUMMARY = pytest.StashKey[list[str]]()


def pytest_addoption(parser):
    parser.addoption("--smoke", action="store_true", help="toy sizes, one round: checks the benchmarks, times nothing")
    parser.addoption("--results", metavar="DIR", help="write the rates of bench_data into this folder too")
    parser.addoption("--reference", metavar="DIR", help="a checkout of the CineMA reference, to be timed beside ours")


def pytest_collect_file(file_path, parent):
    named = file_path.name.startswith("bench_") and file_path.suffix == ".py"
    if named and not parent.session.isinitpath(file_path):  # one that is named on the command line is collected anyway
        return pytest.Module.from_parent(parent, path=file_path)
    return None


def pytest_terminal_summary(terminalreporter, config):
    for line in config.stash.get(SUMMARY, []):
        terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def summary(request) -> list[str]:
    """Lines to print after the tables."""
    return request.config.stash.setdefault(SUMMARY, [])


@pytest.fixture(scope="session")
def preset(request) -> str:
    """The model to time."""
    return "toy" if request.config.getoption("--smoke") else "cinema-base"


@pytest.fixture
def timed(benchmark, preset):
    """Times a function and gives the median in seconds; None with --benchmark-disable."""

    def run(function, *, group: str) -> float | None:
        benchmark.group = group
        benchmark.pedantic(function, rounds=1 if preset == "toy" else 5, warmup_rounds=1)
        return benchmark.stats.stats.median if benchmark.stats else None

    return run
