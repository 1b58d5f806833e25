"""How a try ends: right, refused as the plan says, or wrong."""

import contextlib
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from PIL import Image

from altdiffusion.requests import shorten

#: What a refusal may take of the processor, before any model has worked.
SECONDS = 0.05
LONGEST = 500

PICTURE = Image.effect_mandelbrot((64, 64), (-2, -1.5, 1, 1.5), 50).convert("RGB")
#: Values of every kind, few of which make sense anywhere.
JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.binary(max_size=9),
    st.lists(st.one_of(st.integers(), st.floats(), st.text(max_size=5)), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
    st.sampled_from([10**5000, [10**5000], object(), torch.zeros(2), np.zeros((3, 3)), PICTURE, print]),
)
#: Texts: any, and of what stands between letters.
WORDS = st.one_of(
    st.text(max_size=50), st.text(st.characters(categories=["Cs", "Cc", "Cf", "Mn"]), max_size=20)
)


def examples(tries: int) -> settings:
    """The same for every run; a slow one is for the tally to judge."""
    checks = list(HealthCheck)
    return settings(
        max_examples=tries, derandomize=True, deadline=None, database=None, suppress_health_check=checks
    )


def shown(arguments: dict[str, Any]) -> str:
    return ", ".join(f"{name}={shorten(value)}" for name, value in arguments.items())


@contextlib.contextmanager
def counted(models: dict[str, torch.nn.Module]) -> Iterator[dict[str, int]]:
    """How often each of these models has worked."""
    calls = dict.fromkeys(models, 0)

    def hook(name: str) -> Callable[..., None]:
        def count(*_: Any) -> None:
            calls[name] += 1

        return count

    handles = [model.register_forward_pre_hook(hook(name)) for name, model in models.items()]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def refusal_fault(error: Exception, names: tuple[str, ...], calls: dict[str, int] | None = None) -> str:
    """What is wrong with a refusal; nothing if it is one line that begins with the argument's name."""
    text = str(error)
    if not isinstance(error, ValueError | TypeError):
        return f"a {type(error).__name__}: {text[:200]}"
    if not any(re.match(rf"{re.escape(name)}\b[^\n:]*: ", text) for name in names):
        return f"does not begin with {' or '.join(names)}: {text[:200]}"
    if "\n" in text or len(text) > LONGEST:
        return f"is {len(text)} characters in {text.count(chr(10)) + 1} lines: {text[:200]}"
    if not re.search(r"allowed|Known|give \w+ as well|[Nn]othing|no file|is empty|is damaged|is not a", text):
        return f"does not say what is allowed: {text}"
    return f"came after model work: {text[:100]}" if any((calls or {}).values()) else ""


def slowness(refused: Callable[[], Any], seconds: float) -> str:
    """What is wrong with how long it took to refuse; again, as Python's collector may fall into one try."""
    for _ in range(3):
        if seconds <= SECONDS:
            return ""
        began = time.process_time()
        with contextlib.suppress(Exception):
            refused()
        seconds = time.process_time() - began
    return "" if seconds <= SECONDS else f"took {seconds * 1000:.0f} ms"


def judge(
    tally: Any,
    what: str,
    try_it: Callable[[], Any],
    *,
    names: tuple[str, ...],
    fault: Callable[[Any], str],
    models: dict[str, torch.nn.Module] | None = None,
    must: str | None = None,
) -> None:
    """Tries it and adds how it ended. `fault` says what is wrong with a result, `must` how it has to end."""
    with counted(models or {}) as calls:
        began = time.process_time()
        try:
            result = try_it()
        except Exception as error:
            wrong = refusal_fault(error, names, calls)
            wrong = wrong or slowness(try_it, time.process_time() - began)
            ending = "refused"
        else:
            wrong, ending = fault(result), "right"
    if not wrong and must not in (None, ending):
        wrong = f"ended {ending}, not {must}"
    tally.add("wrong" if wrong else ending, f"{what}: {wrong}")
