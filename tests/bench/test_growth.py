"""`bench.growth`: exponents by hand, and every curve at a tiny shape."""

import pytest

from bench.growth import AXES, exponent, measure, plot, table


def test_the_exponent_is_the_slope_of_the_logarithms():
    assert exponent({1: 3.0, 2: 6.0, 4: 12.0}) == pytest.approx(1)
    assert exponent({10: 1.0, 100: 100.0}) == pytest.approx(2)
    assert exponent({10: 5.0, 100: 5.0}) == pytest.approx(0)


def test_every_curve_is_measured_told_and_drawn(tmp_path):
    report = measure("tiny", 1) | {"command": "python"}
    assert report["points"].keys() == AXES.keys()
    assert all(took > 0 for points in report["points"].values() for took in points.values())
    assert "| guided UNet call | pixels |" in table(report)
    plot(report, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").stat().st_size > 1000
