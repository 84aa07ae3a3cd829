from __future__ import annotations

import pytest

from prunefuse.experiment.format import duration, engineering, percent, setting


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (7, "7"),
        (999, "999"),
        (1000, "1 k"),
        (999_900, "1 M"),
        (1.534e12, "1.53 T"),
        (2e20, "200 E"),
        (0.5, "0.5"),
    ],
)
def test_engineering(value, text):
    assert engineering(value) == text


def test_engineering_has_the_unit_behind_the_prefix():
    assert engineering(3.21e9, "FLOPs") == "3.21 GFLOPs"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.4213, "0.42 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (119.4, "119 s"),
        (185, "3 min 05 s"),
        (7800, "2 h 10 min"),
    ],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_percent():
    assert (percent(28 / 1437), percent(0.2), percent(1)) == ("1.9 %", "20 %", "100 %")


def test_setting():
    assert setting([[1, 0.1], [90, 1.0]]) == "(1, 0.1), (90, 1)"
    assert (setting(True), setting(()), setting(5e-4), setting("keep")) == ("yes", "none", "0.0005", "keep")
