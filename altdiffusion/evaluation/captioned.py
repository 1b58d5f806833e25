"""Readers of pictures with captions, in the layouts in which their owners and CLIP_benchmark publish them.

Flickr30k and Flickr30k-CN, COCO, COCO-CN, XTD10, Crossmodal-3600, Multi30k, and any set in CLIP_benchmark's
annotation JSON. Where the papers' protocol is a choice among several, the reader says so.
"""

import json
from collections.abc import Callable, Iterable
from functools import partial
from itertools import islice
from pathlib import Path

from altdiffusion.evaluation.datasets import (
    Captioned,
    Found,
    locate,
    read_json,
    read_lines,
    tag_of,
    text_of,
)
from altdiffusion.requests import BadRequest, shorten

Reader = Callable[[Path], list[Found]]


def flickr30k(folder: Path) -> list[Found]:
    """Karpathy's test split: his dataset_flickr30k.json, or CLIP_benchmark's flickr30k_test_karpathy.txt."""
    split, table = folder / "dataset_flickr30k.json", folder / "flickr30k_test_karpathy.txt"
    if split.is_file():
        return [_found("flickr30k", folder, ["en"], lambda tag: _karpathy(split))]
    if table.is_file():
        return [_found("flickr30k", folder, ["en"], lambda tag: _table(table))]
    return []


def flickr30k_cn(folder: Path) -> list[Found]:
    """The human translation of the 5,000 test captions: lines of `picture#number`, white space, caption."""
    places = (folder, folder / "test")
    file = next(
        (p / "flickr30k_cn_test.txt" for p in places if (p / "flickr30k_cn_test.txt").is_file()), None
    )
    return [_found("flickr30k", folder, ["zh"], lambda tag: _numbered(file, folder))] if file else []


def coco(folder: Path) -> list[Found]:
    """Karpathy's 5K test split, every caption of it: his dataset_coco.json, or coco_test_karpathy.json."""
    split, plain = folder / "dataset_coco.json", folder / "coco_test_karpathy.json"
    if split.is_file():
        return [_found("coco", folder, ["en"], lambda tag: _karpathy(split))]
    if plain.is_file():
        return [_found("coco", folder, ["en"], lambda tag: _coco_format(plain))]
    return []


def coco_cn(folder: Path) -> list[Found]:
    """The 1,000 test pictures with captions written in Chinese (the papers' 1K) and translated (5K)."""
    names = folder / "coco-cn_test.txt"
    files = {"coco-cn-1k": "human-written", "coco-cn-5k": "manually-translated"}
    return [
        _found(name, folder, ["zh"], partial(_coco_cn, folder, folder / f"imageid.{kind}-caption.txt"))
        for name, kind in files.items()
        if names.is_file() and (folder / f"imageid.{kind}-caption.txt").is_file()
    ]


def xtd10(folder: Path) -> list[Found]:
    """1,000 COCO pictures with one caption in each of 11 languages, as in its repository or in one folder."""
    listed = next(
        (f for f in (folder / "test_image_names.txt", folder / "XTD10/test_image_names.txt") if f.is_file()),
        None,
    )
    if listed is None:
        return []
    places = [folder, *(folder / part for part in ("XTD10", "MIC", "STAIR"))]
    stem = "test_1kcaptions_"
    files = {tag_of(f.stem.removeprefix(stem)): f for place in places for f in place.glob(f"{stem}*.txt")}
    return [_found("xtd10", folder, sorted(files), lambda tag: _parallel(listed, files[tag], folder))]


def crossmodal3600(folder: Path) -> list[Found]:
    """Crossmodal-3600's captions.jsonl, all captions of a picture in a language."""
    file = folder / "captions.jsonl"
    if not file.is_file():
        return []
    rows = [row for row in _json_rows(file, 1) if "image/key" in row]
    keys = {tag_of(key): key for row in rows for key, value in row.items() if "caption" in _mapping(value)}
    return [_found("crossmodal-3600", folder, sorted(keys), lambda tag: _crossmodal(file, keys[tag]))]


def multi30k(folder: Path) -> list[Found]:
    """Task 1's test splits: one caption per picture and language, translated from English."""
    base = next((b for b in (folder, folder / "data/task1") if (b / "image_splits").is_dir()), None)
    if base is None or not (base / "raw").is_dir():
        return []
    found = []
    for listed in sorted((base / "image_splits").glob("test_*.txt")):
        files = {f.name.split(".")[1]: f for f in sorted((base / "raw").glob(f"{listed.stem}.*"))}
        name = f"multi30k-{listed.stem.removeprefix('test_').replace('_', '-')}"
        read = partial(_parallel_tag, listed, files, folder)
        found.append(_found(name, folder, sorted(files), read))
    return [one for one in found if one.languages]


def clip_benchmark_json(folder: Path) -> list[Found]:
    """`NAME-TAG.json` with the parallel lists `image_paths` and `annotations`; a picture may come again."""
    by_name: dict[str, dict[str, Path]] = {}
    for file in sorted(folder.glob("*-*.json")):
        name, _, tag = file.stem.rpartition("-")
        content = file.read_bytes() if len(tag) in (2, 3) else b""
        if b'"image_paths"' in content and b'"annotations"' in content:
            name = {"crossmodal3600_captions": "crossmodal-3600"}.get(name, name)
            by_name.setdefault(name, {})[tag_of(tag)] = file
    return [
        _found(name, folder, sorted(files), partial(_clip_benchmark, files))
        for name, files in by_name.items()
    ]


READERS: tuple[Reader, ...] = (
    flickr30k,
    flickr30k_cn,
    coco,
    coco_cn,
    xtd10,
    crossmodal3600,
    multi30k,
    clip_benchmark_json,
)


def _found(name: str, folder: Path, tags: Iterable[str], read: Callable[[str], Captioned]) -> Found:
    return Found(name, "retrieval", folder, tuple(tags), read)


def _captioned(folder: Path, pairs: Iterable[tuple[str, str]]) -> Captioned:
    """From (picture's name, caption) pairs; the pictures in the order of their first caption."""
    by_picture: dict[str, list[str]] = {}
    for name, caption in pairs:
        text = text_of(caption)
        if text:
            by_picture.setdefault(name, []).append(text)
    if not by_picture:
        raise BadRequest(f"data: {shorten(str(folder))} has no captions in its test split")
    return Captioned(locate(folder, by_picture), tuple(tuple(texts) for texts in by_picture.values()))


def _karpathy(file: Path) -> Captioned:
    rows = [row for row in _fields(read_json(file), "images", file) if row["split"] == "test"]
    names = [f"{row['filepath']}/{row['filename']}" if "filepath" in row else row["filename"] for row in rows]
    captions = ((name, one["raw"]) for name, row in zip(names, rows, strict=True) for one in row["sentences"])
    return _captioned(file.parent, captions)


def _table(file: Path) -> Captioned:
    pairs = [line.split(".jpg,", 1) for line in read_lines(file)[1:] if line.strip()]
    _check_pairs(pairs, file, "NAME.jpg,CAPTION")
    return _captioned(file.parent, ((f"{pair[0]}.jpg", pair[1].strip('"')) for pair in pairs))


def _numbered(file: Path, folder: Path) -> Captioned:
    pairs = [line.split(None, 1) for line in read_lines(file) if line.strip()]
    _check_pairs(pairs, file, "PICTURE#NUMBER CAPTION")
    names = (pair[0].split("#")[0].removesuffix(".jpg") for pair in pairs)
    return _captioned(folder, ((f"{name}.jpg", pair[1]) for name, pair in zip(names, pairs, strict=True)))


def _coco_format(file: Path) -> Captioned:
    content = read_json(file)
    names = {row["id"]: row["file_name"] for row in _fields(content, "images", file)}
    captions: dict[int, list[str]] = {number: [] for number in names}
    for row in _fields(content, "annotations", file):
        captions[row["image_id"]].append(row["caption"])
    return _captioned(file.parent, ((names[n], text) for n, texts in captions.items() for text in texts))


def _coco_cn(folder: Path, file: Path, tag: str) -> Captioned:
    wanted = {line.strip() for line in read_lines(folder / "coco-cn_test.txt")}
    pairs = [line.split(None, 1) for line in read_lines(file) if line.strip()]
    _check_pairs(pairs, file, "PICTURE#NUMBER CAPTION")
    named = ((pair[0].split("#")[0], pair[1]) for pair in pairs)
    return _captioned(folder, ((f"{name}.jpg", text) for name, text in named if name in wanted))


def _parallel(listed: Path, file: Path, folder: Path) -> Captioned:
    names, captions = read_lines(listed), read_lines(file)
    if len(names) != len(captions):
        raise BadRequest(
            f"data: {shorten(str(file))} has {len(captions):,} captions for {len(names):,} pictures; "
            "allowed one in each line"
        )
    return _captioned(folder, zip((name.strip() for name in names), captions, strict=True))


def _parallel_tag(listed: Path, files: dict[str, Path], folder: Path, tag: str) -> Captioned:
    return _parallel(listed, files[tag], folder)


def _crossmodal(file: Path, key: str) -> Captioned:
    rows = _json_rows(file)
    pairs = ((f"{row['image/key']}.jpg", text) for row in rows for text in row[key]["caption"])
    return _captioned(file.parent, pairs)


def _clip_benchmark(files: dict[str, Path], tag: str) -> Captioned:
    file, content = files[tag], read_json(files[tag])
    names, captions = _fields(content, "image_paths", file), _fields(content, "annotations", file)
    if len(names) != len(captions):
        raise BadRequest(f"data: {shorten(str(file))} has lists of different lengths; allowed parallel ones")
    return _captioned(file.parent, zip(names, captions, strict=True))


def _json_rows(file: Path, most: int | None = None) -> list[dict]:
    lines = (line for line in read_lines(file) if line.strip())
    try:
        return [_mapping(json.loads(line)) for line in islice(lines, most)]
    except ValueError as error:
        if isinstance(error, BadRequest):
            raise
        raise BadRequest(f"data: {shorten(str(file))} has a line that is not JSON ({error})") from None


def _mapping(value: object) -> dict:
    return value if isinstance(value, dict) else {}


def _fields(content: object, name: str, file: Path) -> list:
    value = _mapping(content).get(name)
    if not isinstance(value, list):
        raise BadRequest(f"data: {shorten(str(file))} has no list {name!r}; allowed the published layout")
    return value


def _check_pairs(pairs: list[list[str]], file: Path, layout: str) -> None:
    for number, pair in enumerate(pairs, 1):
        if len(pair) != 2:
            raise BadRequest(f"data: line {number} of {shorten(str(file))} has no caption; allowed {layout}")
