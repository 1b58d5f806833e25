"""How a command talks: results on stdout, all else on stderr, one sentence and exit code 2 for a mistake.

A progress bar is drawn only where somebody looks; Ctrl-C is exit code 130.
"""

import contextlib
import io
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from altdiffusion.room import is_exhausted, is_full

_ADDRESSED = r"[a-z_]+: "  # what is meant for the user starts with the argument's name


def run(parse: Callable[[Sequence[str]], Callable[[], None]], argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name in a foreign encoding is no reason to stop
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # which is no text then, and refused as such
    for library in ("TRANSFORMERS", "DIFFUSERS"):  # their hints are for programmers, and read at import only
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    with warnings.catch_warnings():
        warnings.filterwarnings("default", message=_ADDRESSED, category=UserWarning)
        warnings.showwarning = lambda message, *rest, **more: note(f"warning: {message}")
        try:
            _one_sentence(parse, sys.argv[1:] if argv is None else argv)()
            sys.stdout.flush()
            return 0
        except SystemExit as stop:
            return int(stop.code or 0)
        except KeyboardInterrupt:
            return 130
        except BrokenPipeError:  # `| head` has seen enough; Python would complain again when it closes stdout
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 141
        except Exception as error:
            if (said := _for_the_user(error)) is None:  # our own mistake: show where
                raise
            print(said, file=sys.stderr)
            return 2


def _for_the_user(error: Exception) -> str | None:
    if is_exhausted(error):
        return "memory: it is used up; lower size or count, or take a smaller model"
    if is_full(error):
        return f"output: the disk is full ({' '.join(str(error).split()):.200}); allowed a place with room"
    if isinstance(error, ValueError | TypeError) and re.match(_ADDRESSED, str(error)):
        return " ".join(str(error).split())
    return None


def _one_sentence(
    parse: Callable[[Sequence[str]], Callable[[], None]], argv: Sequence[str]
) -> Callable[[], None]:
    """tyro reports mistakes in boxes of several lines; here they become one sentence."""
    boxes = io.StringIO()
    try:
        with contextlib.redirect_stderr(boxes):
            return parse(argv)
    finally:
        text = re.sub(r"\x1b\[[0-9;]*m", "", boxes.getvalue())
        inside = [line.strip("│ ") for line in text.splitlines() if line.startswith("│")]
        sentence = " ".join(line for line in inside if line.strip("─")) or text.strip()
        if sentence:
            print(sentence, file=sys.stderr)


@contextlib.contextmanager
def progress(parts: int) -> Iterator[Callable[[int], Callable[[int, int], None] | None]]:
    """A bar over all requests, where somebody looks; for each request it gives what `generate` calls."""
    if not sys.stderr.isatty():
        yield lambda number: None
        return
    from tqdm import tqdm

    with tqdm(unit="step", leave=False) as bar:

        def part(number: int) -> Callable[[int, int], None]:
            def on_step(done: int, of: int) -> None:
                bar.total = parts * of
                bar.update(number * of + done - bar.n)

            return on_step

        yield part


@contextlib.contextmanager
def ended_at_once(clean_up: Callable[[], None]) -> Iterator[None]:
    """For what cannot be stopped, as the loading of a model: Ctrl-C and SIGTERM end the whole process."""

    def end(number: int, frame: Any) -> None:
        clean_up()
        os._exit(128 + number)

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def say(text: str) -> None:
    """One line of results, which does not break through the progress bar."""
    _line(text, sys.stdout)


def note(text: str) -> None:
    """One line about the work."""
    _line(text, sys.stderr)


def _line(text: str, stream: Any) -> None:
    from tqdm import tqdm

    tqdm.write(text, file=stream)
    stream.flush()
