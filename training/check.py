"""What is wrong with data, said before hours are spent on it."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from training.buckets import bucket_sizes, nearest
from training.multilingual import ONLY_PICTURES, reader_of, survey, wanted_languages
from training.opened import Opened, told
from training.pictures import NAMES, PicturesConfig, opened, picture_reader
from training.samples import Bad, BadSample, Rows
from training.sources import open_rows


def check(
    source: str, config: PicturesConfig, languages: tuple[str, ...], tokenizer: Path | None
) -> tuple[list[str], bool]:
    """A report in lines, and whether training would go through with this data."""
    config = replace(config, streaming=False)
    rows = open_rows(source, config.split, config.subset)
    alone = rows.columns == ONLY_PICTURES
    read = reader_of(rows.columns, config, languages, "the prompt")
    wanted = wanted_languages(config, languages)
    pictures = bool(config.image_column) or any(name in rows.columns for name in NAMES)
    needed = "" if pictures else "en"
    # Everything is looked at: the share is judged at the end.
    found = survey(rows, read, wanted, 1.0, needed)
    opened_data = Opened(source, config, wanted, rows.columns, read, rows=rows, found=found)
    if alone:
        lines = [f"{len(rows):,} pictures without captions: for instance_prompt or textual inversion"]
    else:
        lines = [told(opened_data, loaded_tokenizer(tokenizer))]
    if pictures:
        lines += check_pictures(rows, found.usable, config, found.bad)
    return lines + verdict(found.bad, config.max_bad_share), found.bad.count <= config.max_bad_share * len(
        rows
    )


def check_pictures(rows: Rows, wanted: np.ndarray, config: PicturesConfig, bad: Bad) -> list[str]:
    source = picture_reader(rows.folder, rows.columns, config)
    sizes = bucket_sizes(config.resolution, config.buckets)
    filled, small = Counter(), 0
    for number in map(int, wanted):
        try:
            picture = opened(source(rows[number]))
        except BadSample as error:
            bad.add(rows.name(number), error)
            continue
        (height, width) = size = sizes[nearest(picture.width, picture.height, sizes)]
        filled[size] += 1
        small += picture.width < width or picture.height < height
    taken = ", ".join(f"{h}x{w} {count:,}" for (h, w), count in sorted(filled.items()))
    return [f"pictures (height x width): {taken or 'none'}", f"{small:,} pictures will be enlarged"]


def verdict(bad: Bad, share: float) -> list[str]:
    lines = [f"skipped: {name}" for name in bad.named]
    if bad.count > len(bad.named):
        lines.append(f"skipped: {bad.count - len(bad.named):,} more")
    judged = "more than" if bad.count > share * bad.expected else "within"
    lines.append(f"{bad.count:,} of {bad.expected:,} samples cannot be used: {judged} the share of {share:g}")
    return lines


def loaded_tokenizer(folder: Path | None) -> Any:
    if folder is None:
        return None
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)
