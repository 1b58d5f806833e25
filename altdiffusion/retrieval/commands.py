"""What `altdiffusion index`, `update` and `search` do."""

import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from altdiffusion.images import destination, save_png
from altdiffusion.requests import BadRequest, shorten
from altdiffusion.retrieval import asking, checks, manifest
from altdiffusion.retrieval.filling import Progress
from altdiffusion.retrieval.index import Hit, ImageIndex
from altdiffusion.retrieval.pictures import listed, printed, shown
from altdiffusion.retrieval.report import Report
from altdiffusion.retrieval.where import Where
from altdiffusion.terminal import note, say


def build(folder: str, output: str, *, url: str | None, model: str | None, as_json: bool) -> None:
    root, _ = listed(folder)
    target = _folder(output, "output").absolute()
    if manifest.exists(target):
        checks.refuse_another(target, root, None, url)
        made = manifest.read(target)
        load = _Loader(made.model if model is None else model, made.dtype)
    else:
        checks.check_target(target, url)
        load = _Loader(model, None)
    with _bar() as progress:
        index = ImageIndex.build(load(), folder, output, url=url, model=load.name, progress=progress)
    with index:
        _tell(index.report, len(index), as_json)


def update(index: str, *, model: str | None, as_json: bool) -> None:
    with _opened(index, model) as opened, _bar() as progress:
        report = opened.update(progress=progress)
        _tell(report, len(opened), as_json)


def search(
    index: str,
    words: tuple[str, ...],
    fields: Mapping[str, str | None],
    only: Mapping[str, str | None],
    *,
    model: str | None,
    sheet: str | None,
    as_json: bool,
) -> None:
    """`fields` and `only` are texts as the command line has them: of the search, and of `Where`."""
    where = Where.build(**only)
    arguments = _arguments(words, fields)
    file = None if sheet is None else _sheet_file(sheet)
    with _opened(index, model) as opened:
        if not opened.manifest.complete:
            note(f"warning: index: {shorten(index)} is unfinished; `altdiffusion update` goes on with it")
        hits = opened.search(where=where, **arguments)
    if file is not None:
        from altdiffusion.retrieval.sheet import contact_sheet

        save_png(contact_sheet(hits), file, overwrite=True)
    for hit in hits:
        say(json.dumps(_as_json(hit)) if as_json else _as_line(hit))
    if not hits:
        note("nothing found")


def _arguments(words: tuple[str, ...], fields: Mapping[str, str | None]) -> dict[str, Any]:
    """Checked as far as can be without the model, so that a mistake does not wait for it."""
    arguments: dict[str, Any] = {name: fields[name] for name in ("image", "more", "less")}
    arguments["text"] = " ".join(words) or None
    arguments["k"] = _number(int, fields["k"], "k", 10)
    arguments["weight"] = _number(float, fields["weight"], "weight", 0.5)
    alike = _number(float, fields["alike"], "alike", 0.98)
    arguments["alike"] = alike
    asking.check_search(arguments["k"], alike)
    asking.Asked.checked(*(arguments[name] for name in ("text", "image", "weight", "more", "less")))
    return arguments


def _number(kind: type, text: str | None, name: str, default: Any) -> Any:
    if text is None:
        return default
    try:
        return kind(text)
    except ValueError:
        raise BadRequest(f"{name}: {shorten(text)} is no {'whole ' if kind is int else ''}number") from None


class _Loader:
    """Loads a model when called; a folder is remembered by its whole path."""

    def __init__(self, model: str | None, dtype: str | None) -> None:
        from altdiffusion.checkpoints import resolve

        resolve(model)
        self.name = str(Path(model).absolute()) if model and Path(model).exists() else model
        self._dtype = dtype

    def __call__(self) -> Any:
        from altdiffusion.model import AltCLIP

        return AltCLIP.from_pretrained(self.name, dtype=self._dtype)


def _opened(index: str, model: str | None) -> ImageIndex:
    folder = _folder(index, "index")
    clip = None
    if model is not None:
        clip = _Loader(model, manifest.read(folder).dtype)()
    return ImageIndex.open(folder, clip)


def _folder(name: str, argument: str) -> Path:
    if not name or "\0" in name:
        raise BadRequest(f"{argument}: {shorten(name)} is no name; allowed a folder")
    return Path(name)


def _sheet_file(sheet: str) -> Path:
    _, file = destination(sheet, "sheet")
    if file is None:
        raise BadRequest(f"sheet: {shorten(sheet)} is a folder; allowed a name in .png")
    return file


@contextlib.contextmanager
def _bar() -> Iterator[Progress | None]:
    if not sys.stderr.isatty():
        yield None
        return
    from tqdm import tqdm

    with tqdm(unit="file", leave=False) as bar:

        def show(done: int, of: int) -> None:
            bar.total = of
            bar.update(done - bar.n)
            if done == of:  # of a large index this takes minutes
                bar.set_postfix_str("finishing the index")

        yield show


def _tell(report: Report, size: int, as_json: bool) -> None:
    if as_json:
        say(json.dumps({"pictures": size, **report.to_dict()}))
        return
    counts = {name: count for name, count in report.to_dict().items() if name != "left_out" and count}
    told = ", ".join(f"{count:,} {name}" for name, count in counts.items())
    say(f"{size:,} pictures in the index{f': {told}' if told else ''}")
    for reason, left in report.left_out.items():
        more = f" and {left.count - len(left.first):,} more" if left.count > len(left.first) else ""
        note(f"left out, {reason} ({left.count:,}): {', '.join(left.first)}{more}")


def _as_line(hit: Hit) -> str:
    state = "" if hit.state == "as indexed" else f"  ({hit.state})"
    alike = f"  (+{len(hit.alike)} alike)" if hit.alike else ""
    return f"{hit.score:.4f}  {printed(str(hit.path))}{alike}{state}"


def _as_json(hit: Hit) -> dict[str, Any]:
    """Names that are no valid Unicode have their bytes beside them, in hexadecimal."""
    path = str(hit.path)
    raw = {} if shown(path) == path else {"path_bytes": os.fsencode(path).hex()}
    rest = dataclasses.asdict(hit.picture)
    rest.pop("path")
    return {
        "path": shown(path),
        **raw,
        "score": round(hit.score, 6),
        "state": hit.state,
        "alike": [shown(str(other)) for other in hit.alike],
        **rest,
    }
