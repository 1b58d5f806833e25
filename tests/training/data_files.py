"""Small data sets on disk in every form that training reads."""

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

TAGS = ("en", "de", "th", "ar", "fr", "uk")


def captions(number: int) -> dict[str, str]:
    """English, and one of the other languages by turns."""
    tag = TAGS[1 + number % (len(TAGS) - 1)]
    return {"en": f"picture {number}", tag: f"{tag} {number}"}


def picture(number: int, width: int = 32, height: int = 32) -> bytes:
    """A picture that only this number has."""
    values = np.random.default_rng(number).integers(0, 256, (height, width, 3)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG")
    return file.getvalue()


def write_lines(path: Path, rows: Sequence[Any]) -> Path:
    """JSONL; a row that is a text is written as it is."""
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def image_folder(folder: Path, count: int = 10, size: tuple[int, int] = (32, 32)) -> Path:
    rows = []
    for number in range(count):
        name = f"p{number:03d}.png"
        rows.append({"file_name": name, "captions": captions(number)})
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(picture(number, *size))
    write_lines(folder / "metadata.jsonl", rows)
    return folder


def tar_shards(folder: Path, shards: int = 2, each: int = 6, broken: Sequence[int] = ()) -> Path:
    """Webdataset tars; the pictures of `broken` end in their middle."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        with tarfile.open(folder / f"{shard:03d}.tar", "w") as tar:
            for number in range(shard * each, (shard + 1) * each):
                data = picture(number)
                parts = {
                    "png": data[: len(data) // 2] if number in broken else data,
                    "json": json.dumps({"captions": captions(number)}).encode(),
                }
                for ending, content in parts.items():
                    member = tarfile.TarInfo(f"s{number:03d}.{ending}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return folder
