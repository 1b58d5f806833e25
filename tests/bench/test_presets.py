"""`bench.presets`: what is compared, and how it is told."""

import numpy as np

from altdiffusion.presets import PRESETS
from bench.presets import ALLOWED, difference, table


def test_a_difference_is_of_the_same_pictures():
    exact = np.array([[1, 1, 0, 1], [1, 1, 1, 1]], dtype=bool)
    assert difference(exact, exact) == {"less": 0.0, "low": 0.0, "high": 0.0}
    found = difference(exact, exact & [True, True, True, False])
    assert found["less"] == 0.25
    assert 0 <= found["low"] < 0.25 < found["high"] <= 1


def test_every_preset_has_a_bound_and_a_row():
    assert ALLOWED.keys() == PRESETS.keys()
    row = {"way": "w", "top1": 0.95, "top5": 0.96, "seconds": 0.5, "less": 0.002, "low": -0.004, "high": 0.01}
    made = {"commit": "abc", "machine": "m", "torch": "2", "diffusers": "0", "minutes": 1}
    report = {"presets": dict.fromkeys(PRESETS, row), "languages": ["en"], "emoji": 4, "made with": made}
    text = table(report | {"command": "python"})
    assert "| default | w | 0.9500 | 0.9600 | +0.0020 (-0.0040 to +0.0100; 0.01) | 0.50 |" in text
