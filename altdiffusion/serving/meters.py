"""Counts and times of a service in Prometheus's text format, which is three lines a number."""

import threading
from collections.abc import Mapping

_HELP = {
    "requests_total": "counter, requests taken in, by action",
    "refusals_total": "counter, requests refused, by reason",
    "pictures_total": "counter, pictures drawn",
    "drawing_seconds_total": "counter, seconds spent in drawing",
    "waiting_seconds_total": "counter, seconds that drawn requests had waited",
    "drawings_total": "counter, drawings made, joined requests counting as one",
    "abandoned_total": "counter, drawings stopped as nobody waited for them any more",
    "failures_total": "counter, drawings that ended in an error",
    "waiting": "gauge, requests that wait now",
    "drawing": "gauge, requests that are drawn now",
}


class Meters:
    """Numbers by name and label; the sums only grow, so that rates can be taken of them."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._values: dict[tuple[str, str], int | float] = {}

    def add(self, name: str, amount: int | float = 1, label: str = "") -> None:
        """`label` is one of the code's own words, never a visitor's: each makes a line for ever."""
        with self._guard:
            self._values[name, label] = self._values.get((name, label), 0) + amount

    def value(self, name: str, label: str = "") -> int | float:
        return self._values.get((name, label), 0)

    def text(self, gauges: Mapping[str, int | float]) -> str:
        with self._guard:
            values = self._values | {(name, ""): value for name, value in gauges.items()}
        lines = []
        for name, told in _HELP.items():
            kind, meaning = told.split(", ", 1)
            lines += [f"# HELP altdiffusion_{name} {meaning}", f"# TYPE altdiffusion_{name} {kind}"]
            found = {label: value for (known, label), value in values.items() if known == name} or {"": 0}
            key = "reason" if name == "refusals_total" else "action"
            for label, value in sorted(found.items()):
                where = f'{{{key}="{label}"}}' if label else ""
                lines.append(f"altdiffusion_{name}{where} {value:.12g}")
        return "\n".join(lines) + "\n"
