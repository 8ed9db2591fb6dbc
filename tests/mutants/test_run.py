"""The tests catch the planted faults, all but two of thirty at most."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.long  # half an hour on two cores
def test_the_tests_catch_the_faults():
    command = [sys.executable, Path(__file__).with_name("run.py"), "--whole"]
    ended = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert ended.returncode == 0, ended.stdout
