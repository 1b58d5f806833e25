"""Starting quickly. Standard library only: what starts is not here yet."""

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def collector_paused() -> Iterator[None]:
    """No search for garbage while libraries are imported and a model is loaded.

    Python would look through all objects again and again while their number grows, and find nothing: a sixth
    of the time that torch, transformers and diffusers take (bench/startup.py). What is there at the end
    belongs to the process for good, so later searches leave it out.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
