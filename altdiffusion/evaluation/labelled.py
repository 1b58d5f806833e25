"""Readers of pictures with classes: ImageNet and its kin, CIFAR, webdatasets, and a folder for each class.

Class names and templates are not shipped: they are read beside the pictures, as CLIP_benchmark publishes them
(`TAG_classnames.json`, `TAG_zeroshot_classification_templates.json`), as Chinese-CLIP does (`label_cn.txt`),
and as Babel-ImageNet does (`babel_imagenet.json`, `nllb_dist13b_prompts.json`).
"""

import functools
import json
import re
import tarfile
from collections.abc import Callable
from pathlib import Path

from altdiffusion.evaluation.datasets import (
    Captioned,
    Found,
    Labelled,
    Picture,
    read_lines,
    read_mapping,
    tag_of,
    text_of,
)
from altdiffusion.requests import BadRequest, shorten

Reader = Callable[[Path], list[Found]]

_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".webp"}
_WNID = re.compile(r"n\d{8}")
_CLASSES = 1000
#: Names of data sets as folders have them (the owners' and CLIP_benchmark's), and ours.
_TREES = (
    ("imagenet-v2", r"imagenet-?_?v2"),
    ("imagenet-a", r"imagenet[-_]a$"),
    ("imagenet-r", r"imagenet[-_]r$"),
    ("imagenet-sketch", r"sketch"),
)
_WEBDATASETS = {
    "imagenet1k": "imagenet",
    "imagenetv2": "imagenet-v2",
    "imagenet_sketch": "imagenet-sketch",
    "mscoco_captions": "coco",
}
Names = dict[str, tuple[tuple[int, ...], tuple[str, ...], tuple[str, ...] | None]]
"""By language: the numbers of the classes that have a name, the names, the templates."""


@functools.cache
def wnids() -> tuple[str, ...]:
    """The WordNet ids of ImageNet's 1,000 classes, in the order of the class numbers."""
    content = json.loads((Path(__file__).parent / "imagenet.json").read_text(encoding="utf-8"))
    return tuple(" ".join(content["wnids"]).split())


def imagenet(folder: Path) -> list[Found]:
    """A tree of WordNet ids (ImageNet's val/, -A, -R, Sketch), or of 0 to 999 (V2's matched frequency).

    Trees with part of the classes, as -A and -R have, are classified among those, as their authors do.
    """
    tree = next((t for t in (folder, folder / "val") if _is_tree(t)), None)
    if tree is None:
        return []
    lowered = folder.name.lower()
    name = next((name for name, pattern in _TREES if re.search(pattern, lowered)), "imagenet")
    if name != "imagenet-v2" and any(path.name.isdecimal() for path in tree.iterdir()):
        return []
    places = [folder, folder.parent, folder.parent.parent]
    found = []
    names = _class_names(places, "imagenet1k")
    if names:
        read = functools.partial(_read_tree, tree, names)
        found.append(Found(name, "zero-shot", folder, tuple(sorted(names)), read))
    babel = _babel_names(places)
    if name == "imagenet" and babel:
        read = functools.partial(_read_tree, tree, babel)
        found.append(Found("babel-imagenet", "zero-shot", folder, tuple(sorted(babel)), read))
    return found


def cifar(folder: Path) -> list[Found]:
    """CIFAR-10 and CIFAR-100 in their binary versions: the Python ones are pickles, which run code."""
    ten, hundred = folder / "test_batch.bin", folder / "test.bin"
    if ten.is_file() and (folder / "batches.meta.txt").is_file():
        return [_cifar("cifar10", folder, ten, folder / "batches.meta.txt", before=0)]
    if hundred.is_file() and (folder / "fine_label_names.txt").is_file():
        return [_cifar("cifar100", folder, hundred, folder / "fine_label_names.txt", before=1)]
    return []


def webdataset(folder: Path) -> list[Found]:
    """CLIP_benchmark's: test/nshards.txt, test/0.tar and on, classnames.txt or dataset_type.txt."""
    if not (folder / "test/nshards.txt").is_file():
        return []
    name = re.sub(r"^wds_|_test$", "", folder.name)
    base, _, end = name.rpartition("-")
    known = base and re.fullmatch(r"[a-z]{2}", end)
    name, tag = (base, tag_of(end)) if known else (name, "en")
    name = _WEBDATASETS.get(name, name)
    kind = folder / "dataset_type.txt"
    if kind.is_file() and read_lines(kind)[0].strip().lower() == "retrieval":
        return [Found(name, "retrieval", folder, (tag,), lambda tag: _packed_captions(folder))]
    if not (folder / "classnames.txt").is_file():
        return []
    own = _texts(read_lines(folder / "classnames.txt"))
    templates = folder / "zeroshot_classification_templates.txt"
    names: Names = _class_names([folder, folder.parent], name)
    names[tag] = (
        tuple(range(len(own))),
        own,
        _texts(read_lines(templates)) if templates.is_file() else None,
    )
    return [Found(name, "zero-shot", folder, tuple(sorted(names)), functools.partial(_packed, folder, names))]


def plain_tree(folder: Path) -> list[Found]:
    """A folder for each class. Its name is the class's in English, unless classnames.json says it by tag:
    `{"zh": {"FOLDER": "NAME"}}`. templates.json, where it lies there as well, is `{"zh": ["…{}…"]}`."""
    below = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if len(below) < 2 or not all(any(_files(path)) for path in below):
        return []
    listed = folder / "classnames.json"
    spoken: dict[str, dict[str, str]] = {"en": {path.name: path.name for path in below}}
    if listed.is_file():
        spoken = {tag_of(tag): names for tag, names in read_mapping(listed).items()}
    written = folder / "templates.json"
    own = {tag_of(tag): texts for tag, texts in read_mapping(written).items()} if written.is_file() else {}
    names: Names = {}
    for tag, by_folder in spoken.items():
        numbers = tuple(n for n, path in enumerate(below) if path.name in by_folder)
        templates = _cleaned(own[tag], written) if tag in own else None
        names[tag] = (numbers, _cleaned([by_folder[below[n].name] for n in numbers], listed), templates)
    read = functools.partial(_read_folders, tuple(below), names)
    return [Found(folder.resolve().name, "zero-shot", folder, tuple(sorted(names)), read)]


READERS: tuple[Reader, ...] = (imagenet, cifar, webdataset)


def _is_tree(folder: Path) -> bool:
    """All of the folders in it are classes of ImageNet, by WordNet id or by number."""
    if not folder.is_dir():
        return False
    names = {path.name for path in folder.iterdir() if path.is_dir()}
    numbered = bool(names) and all(name.isdecimal() and int(name) < _CLASSES for name in names)
    return numbered or (bool(names) and all(_WNID.fullmatch(name) for name in names))


def _read_tree(tree: Path, names: Names, tag: str) -> Labelled:
    order = {wnid: number for number, wnid in enumerate(wnids())}
    folders = {}
    for path in sorted(path for path in tree.iterdir() if path.is_dir()):
        number = int(path.name) if path.name.isdecimal() else order.get(path.name)
        if number is None:
            raise BadRequest(f"data: {shorten(str(path))} is none of the 1,000 classes of ILSVRC 2012")
        folders[number] = path
    return _of_folders(folders, names[tag], tree)


def _read_folders(below: tuple[Path, ...], names: Names, tag: str) -> Labelled:
    return _of_folders(dict(enumerate(below)), names[tag], below[0].parent)


def _of_folders(
    folders: dict[int, Path],
    spoken: tuple[tuple[int, ...], tuple[str, ...], tuple[str, ...] | None],
    base: Path,
) -> Labelled:
    """The classes that have both pictures and a name, numbered anew."""
    numbers, class_names, templates = spoken
    both = [(folders[n], name) for n, name in zip(numbers, class_names, strict=True) if n in folders]
    pictures, labels = [], []
    for label, (path, _) in enumerate(both):
        files = _files(path)
        pictures += [Picture(file, file.relative_to(base).as_posix()) for file in files]
        labels += [label] * len(files)
    if not pictures:
        raise BadRequest(f"data: {shorten(str(base))} holds no pictures of the classes that have names")
    return Labelled(tuple(pictures), tuple(labels), tuple(name for _, name in both), templates)


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in _SUFFIXES and p.is_file())


def _class_names(places: list[Path], data_set: str) -> Names:
    """CLIP_benchmark's class names and templates by language, and Chinese-CLIP's list for ImageNet."""
    names: Names = {}
    for place in places:
        for file in sorted(place.glob("*_classnames.json")):
            tag = tag_of(file.name.removesuffix("_classnames.json"))
            own = read_mapping(file).get(data_set)
            if own and tag not in names:
                templates = _templates(places, file.name.removesuffix("_classnames.json"), data_set)
                names[tag] = (tuple(range(len(own))), _cleaned(own, file), templates)
        lists = [place / "label_cn.txt", place / "datasets/ImageNet-1K/label_cn.txt"]
        file = next((path for path in lists if path.is_file()), None)
        if file and data_set == "imagenet1k" and "zh" not in names:
            own = _texts(read_lines(file))
            names["zh"] = (tuple(range(len(own))), own, _templates(places, "cn", data_set))
    if data_set == "imagenet1k":
        for tag, (numbers, _, _) in names.items():
            if len(numbers) != _CLASSES:
                raise BadRequest(f"data: {len(numbers)} class names of ImageNet in {tag}; allowed 1,000")
    return names


def _templates(places: list[Path], code: str, data_set: str) -> tuple[str, ...] | None:
    for place in places:
        file = place / f"{code}_zeroshot_classification_templates.json"
        if file.is_file():
            content = read_mapping(file)
            own = content.get(data_set, content.get("imagenet1k"))
            if isinstance(own, list):  # class by class prompts, as CuPL has, are another method
                return _cleaned(own, file)
    return None


def _babel_names(places: list[Path]) -> Names:
    """Babel-ImageNet: `{"DE": [[class numbers], [names]]}`, and its prompts `{"DE": ["... {} ..."]}`."""
    folders = [p / below for p in places for below in ("", "data", "babel-imagenet", "Babel-ImageNet/data")]
    files = (p / f"{stem}.json" for p in folders for stem in ("babel_imagenet", "babel_imagenet-298"))
    file = next((path for path in files if path.is_file()), None)
    if file is None:
        return {}
    prompts = file.parent / "nllb_dist13b_prompts.json"
    written = read_mapping(prompts) if prompts.is_file() else {}
    return {
        tag_of(code): (
            tuple(numbers),
            _cleaned(own, file),
            _cleaned(written[code], prompts) if code in written else None,
        )
        for code, (numbers, own) in read_mapping(file).items()
    }


def _cleaned(values: object, file: Path) -> tuple[str, ...]:
    """Names or templates; each must say something, as their places in the list count."""
    if not isinstance(values, list):
        raise BadRequest(f"data: {shorten(str(file))} holds {shorten(values)}; allowed lists of texts")
    cleaned = tuple(text_of(value) for value in values)
    if not all(cleaned):
        raise BadRequest(f"data: {shorten(str(file))} has an empty name in a list; allowed names")
    return cleaned


def _texts(lines: list[str]) -> tuple[str, ...]:
    """The lines that say something."""
    return tuple(text for text in (text_of(line) for line in lines) if text)


def _cifar(name: str, folder: Path, file: Path, listed: Path, before: int) -> Found:
    own = _texts(read_lines(listed))
    english = (tuple(range(len(own))), tuple(text.replace("_", " ") for text in own), None)
    names: Names = {"en": english} | _class_names([folder, folder.parent], name)

    def read(tag: str) -> Labelled:
        record = before + 1 + 3072
        content = file.read_bytes()
        if not content or len(content) % record:
            raise BadRequest(f"data: {shorten(str(file))} is truncated; allowed records of {record} bytes")
        starts = range(0, len(content), record)
        pictures = [Picture(file, str(n), at + before + 1, 3072, planes=True) for n, at in enumerate(starts)]
        labels = tuple(content[at + before] for at in starts)
        return Labelled(tuple(pictures), labels, names[tag][1], names[tag][2])

    return Found(name, "zero-shot", folder, tuple(sorted(names)), read)


def _packed(folder: Path, names: Names, tag: str) -> Labelled:
    pictures, classes = _samples(folder, ".cls")
    labels = tuple(int(text) for text in classes)
    _, class_names, templates = names[tag]
    nameless = [label for label in labels if not 0 <= label < len(class_names)]
    if nameless:
        raise BadRequest(f"data: class {nameless[0]} of {shorten(str(folder))} has no name in {tag}")
    return Labelled(tuple(pictures), labels, class_names, templates)


def _packed_captions(folder: Path) -> Captioned:
    pictures, texts = _samples(folder, ".txt")
    return Captioned(tuple(pictures), tuple(_texts(text.splitlines()) for text in texts))


def _samples(folder: Path, suffix: str) -> tuple[list[Picture], list[str]]:
    """The pictures of the shards, by where they lie in the tar files, and each one's text or class number."""
    pictures, texts = [], []
    for shard in range(int(read_lines(folder / "test/nshards.txt")[0])):
        file = folder / f"test/{shard}.tar"
        samples: dict[str, dict[str, tuple[int, int]]] = {}
        try:
            with tarfile.open(file, "r:") as tar, file.open("rb") as stream:
                for member in tar:
                    stem, dot, end = member.name.partition(".")
                    samples.setdefault(stem, {})[dot + end.lower()] = (member.offset_data, member.size)
                for stem, parts in samples.items():
                    image = next((part for part in parts if part in _SUFFIXES), None)
                    if image is None or suffix not in parts:
                        raise BadRequest(
                            f"data: {shorten(stem)} in {shorten(str(file))} lacks picture or {suffix}"
                        )
                    stream.seek(parts[suffix][0])
                    texts.append(stream.read(parts[suffix][1]).decode("utf-8"))
                    pictures.append(Picture(file, f"{shard}.tar/{stem}{image}", *parts[image]))
        except (OSError, tarfile.TarError, UnicodeDecodeError) as error:
            raise BadRequest(f"data: {shorten(str(file))} cannot be read ({error})") from None
    return pictures, texts
