"""`bench.growth`: exponents by hand, and every curve at a tiny shape."""

import json

import pytest

from bench.growth import AXES, exponent, measure, plot, points_of, table


def test_the_exponent_is_the_slope_of_the_logarithms():
    assert exponent({1: 3.0, 2: 6.0, 4: 12.0}) == pytest.approx(1)
    assert exponent({10: 1.0, 100: 100.0}) == pytest.approx(2)
    assert exponent({10: 5.0, 100: 5.0}) == pytest.approx(0)


def test_every_curve_is_measured_told_and_drawn(tmp_path):
    report = measure("tiny", 1) | {"command": "python"}
    assert AXES.keys() - report["points"].keys() == {"20 searches by a graph"}  # which 200 vectors have not
    assert all(took > 0 for points in report["points"].values() for took in points.values())
    assert "| guided UNet call | pixels |" in table(report)
    plot(report, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").stat().st_size > 1000


def test_what_was_measured_before_is_kept(tmp_path):
    before = {"shape": "published", "points": {"text": {"5": 0.2, "77": 0.6}}}
    (tmp_path / "report.json").write_text(json.dumps(before))
    kept = points_of(tmp_path / "report.json", "published")
    assert measure("tiny", 1, [], kept)["points"] == {"text": {5: 0.2, 77: 0.6}}
    assert points_of(tmp_path / "report.json", "tiny") == points_of(tmp_path / "none", "tiny") == {}
