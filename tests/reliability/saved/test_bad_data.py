"""Data sets with bad rows: what cannot be used is counted and named, and too much of it is refused in a line.

`check` is what `python -m training.data check` says; that a stage refuses the same is in
tests/training/test_mistakes.py.
"""

import os
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from datasets import Dataset
from datasets import config as datasets_config

from tests.fakes import tiny_tokenizer
from tests.reliability.saved.trying import tried
from tests.training.data_files import captions, image_folder, picture, tar_shards, write_lines
from training.check import check
from training.pictures import PicturesConfig
from training.samples import BadSample
from training.sources import open_rows


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets_config, "HF_DATASETS_CACHE", tmp_path / "cache")


def spoilt(count: int, bad: int, spoil: Callable[[Path], object]) -> Callable[[Path], None]:
    """A folder of pictures, of which so many are spoilt, all over it."""

    def make(folder: Path) -> None:
        image_folder(folder, count)
        for number in range(bad):
            file = folder / f"p{number * count // bad:03d}.png"
            file.unlink()
            spoil(file)

    return make


def rows(*items: object) -> Callable[[Path], object]:
    """A folder of as many pictures, and lines that say of each what is given."""

    def make(folder: Path) -> None:
        image_folder(folder, len(items))
        lines = [
            {"file_name": f"p{number:03d}.png", **item} if isinstance(item, dict) else item
            for number, item in enumerate(items)
        ]
        write_lines(folder / "metadata.jsonl", lines)

    return make


def bomb(file: Path) -> None:
    """A picture that says that it is 40,000 by 40,000."""
    head = b"IHDR" + struct.pack(">IIBBBBB", 40_000, 40_000, 1, 0, 0, 0, 0)
    file.write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\r" + head + struct.pack(">I", zlib.crc32(head)))


def cut_tar(folder: Path) -> None:
    tar_shards(folder)
    file = folder / "001.tar"
    file.write_bytes(file.read_bytes()[:9000])


def cut_parquet(folder: Path) -> None:
    folder.mkdir()
    Dataset.from_list([{"en": "a", "de": "b"}] * 100).to_parquet(folder / "a.parquet")
    content = (folder / "a.parquet").read_bytes()
    (folder / "a.parquet").write_bytes(content[: len(content) // 2])


def repeated(folder: Path) -> None:
    image_folder(folder, 10)
    write_lines(
        folder / "metadata.jsonl", [{"file_name": "p001.png", "captions": captions(1)} for _ in range(10)]
    )


GOOD = [{"captions": captions(number)} for number in range(8)]
FEW, MANY = {"max_bad_share": 0.3}, {"max_bad_share": 0.01}
#: What lies there, how it is read, and what must be said: in the report of data that goes through, in that of
#: data that does not, or in the refusal.
CASES: dict[str, tuple[Callable[[Path], object], dict, str, str]] = {
    "20 of 200 broken, allowed": (
        spoilt(200, 20, lambda file: file.write_bytes(b"broken")),
        FEW,
        "through",
        r"p000\.png\b.*skipped: 10 more\n20 of 200 samples cannot be used: within the share of 0\.3",
    ),
    "20 of 200 broken": (
        spoilt(200, 20, lambda file: file.write_bytes(b"broken")),
        MANY,
        "not",
        r"20 of 200 samples cannot be used: more than the share of 0\.01",
    ),
    "pictures cut in half": (
        spoilt(20, 2, lambda file: file.write_bytes(picture(1)[:600])),
        FEW,
        "through",
        r"p000\.png\b.*p010\.png\b.*\n2 of 20 samples",
    ),
    "pictures that are not there": (
        spoilt(20, 2, lambda file: None),
        FEW,
        "through",
        r"p000\.png\b.*\n2 of 20 samples",
    ),
    "pipes among the pictures": (spoilt(20, 2, os.mkfifo), FEW, "through", r"p000\.png\b.*\n2 of 20 samples"),
    "folders among the pictures": (
        spoilt(20, 2, Path.mkdir),
        FEW,
        "through",
        r"p000\.png\b.*\n2 of 20 samples",
    ),
    "pictures of 1,600 MP": (spoilt(20, 2, bomb), FEW, "through", r"p000\.png\b.*\n2 of 20 samples"),
    "lines that are no JSON": (
        rows(*GOOD, '{"file_name": "p00', "[1]"),
        FEW,
        "through",
        r"metadata\.jsonl line 9 .*line 10 .*\n2 of 10 samples",
    ),
    "captions that are no text": (
        rows(*GOOD, {"captions": 7}, {"captions": {"en": None}}),
        FEW,
        "through",
        r"\n2 of 10 samples cannot be used",
    ),
    "the same record ten times": (repeated, MANY, "through", r"\n0 of 10 samples cannot be used"),
    "captions of over 77 tokens": (
        rows(*({"captions": {"en": "a red cat " * 60}} for _ in range(10))),
        MANY,
        "through",
        r"en 10 \(100\.0 % cut\)",
    ),
    "a caption column that is not there": (
        rows(*GOOD),
        {"caption_column": "heading"},
        "refused",
        r"^caption_column: no 'heading'; allowed: file_name, captions$",
    ),
    "an image column that is not there": (
        rows(*GOOD),
        {"image_column": "img"},
        "refused",
        r"^image_column: no 'img'; allowed: file_name, captions$",
    ),
    "nothing": (lambda folder: folder.mkdir(), {}, "refused", r"^data: .* holds no data; allowed: "),
    "an empty list": (
        lambda folder: write_lines(folder / "metadata.jsonl", []),
        {},
        "refused",
        r"^[a-z_]+: ",
    ),
    "no text in the language": (
        rows(*GOOD),
        {"languages": ("ko",)},
        "refused",
        r"^languages: none of the 8 samples has a text in ko$",
    ),
    "a tar that is cut": (cut_tar, FEW, "refused", r"^data: .* cannot be read: "),
    "a parquet that is cut": (cut_parquet, {}, "refused", r"^data: .* cannot be read: "),
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", CASES)
def test_bad_rows_are_counted_and_named_and_bad_data_is_refused(name, tmp_path, tally, tokenizer):
    make, options, expected, said = CASES[name]
    folder = tmp_path / "data"
    make(folder)
    languages = options.pop("languages", ()) if "languages" in (options := dict(options)) else ()
    config = PicturesConfig(resolution=32, **options)
    count = tally("D7 data with bad rows")
    with tried(count, name, "right" if expected == "through" else "refused"):
        if expected == "refused":
            with pytest.raises(ValueError, match=said) as caught:
                check(str(folder), config, languages, tokenizer)
            assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
        else:
            report, through = check(str(folder), config, languages, tokenizer)
            assert re.search(said, "\n".join(report), re.DOTALL), report
            assert through == (expected == "through")
    count.check(1)


def test_a_line_that_is_half_a_character_is_a_bad_sample(tmp_path):
    write_lines(tmp_path / "p.jsonl", ['{"en": "a", "de": "b"}'])
    (tmp_path / "p.jsonl").write_bytes(b'{"en": "a", "de": "b"}\n{"en": "\xff\xfe"}\n')
    with pytest.raises(BadSample):
        open_rows(str(tmp_path / "p.jsonl"))[1]
