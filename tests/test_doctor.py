"""``signflip doctor`` and the thread setting."""

import json
import os
import re
import tomllib
from pathlib import Path

import numpy as np
import pytest

import signflip
from signflip import _core
from signflip.cli import main
from signflip.doctor import OPTIONAL, REQUIRED, examine
from signflip.errors import ArgumentError


def test_says_what_a_report_needs():
    found = examine()
    assert signflip.__version__ in found["signflip"]
    assert str(_core.__file__) in found["extension"]
    assert found["kernels"]
    assert f"{os.cpu_count()} cores seen" in found["threads"]
    assert found["gpu"].startswith("not used: ")
    assert found["numpy"] == np.__version__
    assert all(isinstance(value, str) and value for value in found.values())


def test_prints_a_line_each_or_json(capsys):
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(found)


def test_threads_are_set_and_reported():
    before = _core.num_threads()
    try:
        signflip.set_num_threads(3)
        assert examine()["threads"].startswith("3 in use")
    finally:
        signflip.set_num_threads(before)


@pytest.mark.parametrize("n", [0, -1])
def test_no_threads_is_an_error(n):
    with pytest.raises(ArgumentError, match="threads"):
        signflip.set_num_threads(n)


def test_lists_what_the_package_depends_on():
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    names = [re.split(r"[<>=]", requirement)[0] for requirement in project["dependencies"]]
    assert names == list(REQUIRED)
    extras = project["optional-dependencies"]
    assert [re.split(r"[<>=]", extras[extra][0])[0] for extra in ("plot", "dataframe")] == list(OPTIONAL)
