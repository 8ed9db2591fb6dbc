"""What is seen of a long piece of work while it is under way."""

import io
import time

import pytest
import rich.console

from cinema_fast.common import progress
from cinema_fast.common.progress import progress_bar


def test_lines_where_there_is_no_terminal(capfd, monkeypatch):
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.05)
    with progress_bar("working", 5) as advance:
        assert capfd.readouterr().err == "working: 0 of 5, 0:00\n"  # at once
        advance()
        advance(2)
        time.sleep(0.2)
        assert "working: 3 of 5, 0:00\n" in capfd.readouterr().err  # while nothing more ends
    assert capfd.readouterr().err.endswith("working: 3 of 5, 0:00\n")
    time.sleep(0.1)
    assert capfd.readouterr().err == ""
    with pytest.raises(KeyError), progress_bar("working", 5):
        raise KeyError
    capfd.readouterr()
    for total, show in ((5, False), (0, True)):
        with progress_bar("working", total, show=show) as advance:
            advance()
    assert capfd.readouterr().err == ""


def test_bar_of_a_terminal_moves_while_nothing_ends(monkeypatch):
    shown = io.StringIO()
    console = rich.console.Console(file=shown, force_terminal=True, width=100)
    monkeypatch.setattr(progress, "terminal", lambda: console)
    with progress_bar("working", 5):
        time.sleep(0.4)
        assert shown.getvalue().count("0/5") > 2
