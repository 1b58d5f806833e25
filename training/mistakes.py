"""tyro reports a mistake in a box of several lines; here it becomes one that starts with the argument."""

import contextlib
import io
import os
import re
import sys
from collections.abc import Iterator

from training.samples import shorten

#: tyro wraps its boxes to the terminal's width, in the middle of long paths.
WIDE = {"COLUMNS": "4000"}
#: How tyro words a mistake, and how we do.
FORMS = (
    (
        r"invalid choice (?P<value>.+) for argument '--(?P<name>[\w.-]+)'. Expected one of \((?P<all>.*)\).",
        "{name}: {value}; allowed: {all}",
    ),
    (
        r"Error parsing --(?P<name>[\w.-]+): invalid literal for int\(\) with base 10: (?P<value>.*)",
        "{name}: {value}; allowed: a whole number",
    ),
    (
        r"Error parsing --(?P<name>[\w.-]+): could not convert string to float: (?P<value>.*)",
        "{name}: {value}; allowed: a number",
    ),
    (r"Error parsing --(?P<name>[\w.-]+): (?P<what>.*)", "{name}: {what}"),
    (r"Error parsing [\w.-]+: (?P<what>.*)", "{what}"),
    (
        r"Unrecognized options: (?:--)?(?P<name>\S+?),? .*?Perhaps you meant:\s+--(?P<near>\S+).*",
        "{name}: no such option; did you mean --{near}?",
    ),
    (r"Unrecognized options: (?:--)?(?P<name>\S+?)(?:,? .*)?", "{name}: no such option; --help lists all"),
    (r"Missing from .*?: --(?P<name>\S+) .*", "{name}: is required"),
    (r"Missing value for argument '--(?P<name>[\w.-]+)'.*", "{name}: its value is missing"),
)
#: What encloses a box, or, where the output knows no such characters, stands over and under it.
TITLE_OR_RULE = re.compile(r"[╭╰│─ -]*([A-Z][a-z]+ [a-z]+)?[╮╯│─ -]*")
#: Characters that are shown of a value, and of the rest of a sentence.
VALUE, REST = 60, 400


@contextlib.contextmanager
def in_one_line(argv: list[str]) -> Iterator[None]:
    """What is written to stderr inside is printed as one line after it."""
    if {"-h", "--help"} & set(argv):
        yield
        return
    said, before = io.StringIO(), os.environ.get("COLUMNS")
    os.environ.update(WIDE)
    try:
        with contextlib.redirect_stderr(said):
            yield
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before
        if text := said.getvalue():
            print(sentence(text), file=sys.stderr)


def sentence(text: str) -> str:
    """A box as one line."""
    lines = re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines()
    kept = [line.strip("│| ") for line in lines if not TITLE_OR_RULE.fullmatch(line)]
    inside = " ".join(" ".join(kept).split())
    inside = re.split(r" (?:For full helptext|Argument helptext)\b", inside)[0]
    for pattern, form in FORMS:
        if match := re.fullmatch(pattern, inside):
            said = match.groupdict()
            parts = {name: shorten(text, VALUE if name == "value" else REST) for name, text in said.items()}
            if "name" in parts:
                parts["name"] = shorten(parts["name"].replace("-", "_"), VALUE)
            if "all" in parts:
                parts["all"] = parts["all"].replace("'", "")
            return form.format(**parts)
    return inside
