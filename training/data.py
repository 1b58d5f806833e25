"""Data of one's own for the stages: pictures with captions, and parallel text.

`check` says what is wrong with it before hours are spent:

    python -m training.data check DIR
"""

import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from accelerate import PartialState
from diffusers import AutoencoderKL

from training.buckets import bucket_sizes
from training.config import RunConfig
from training.latent_store import stored_latents
from training.multilingual import (
    LanguageOrder,
    SourceConfig,
    caption_reader,
    drawn_from,
    reader_of,
    survey,
    usable,
    wanted_languages,
)
from training.opened import Opened, told
from training.pictures import (
    CachedPictures,
    PicturesConfig,
    StreamedPictures,
    picture_reader,
    picture_stream,
)
from training.processes import state_of_processes
from training.samples import BadSample, Row
from training.sources import open_rows, open_stream
from training.streams import Share, Stream, new_bad

logger = logging.getLogger(__name__)


def share_of(run: RunConfig, state: PartialState) -> Share:
    passes = run.gradient_accumulation_steps * state.num_processes
    return Share(run.seed, state.process_index, state.num_processes, max(1, run.batch_size // passes))


def open_data(
    source: str,
    config: SourceConfig,
    languages: tuple[str, ...] = (),
    needed: str = "",
    otherwise: str = "",
) -> Opened:
    """Refuses, before any model is read, what has no texts for a stage.

    `otherwise` is the caption of pictures that come without any.
    """
    wanted = wanted_languages(config, languages)
    if config.streaming:
        stream = open_stream(source, config.split, config.subset)
        columns = tuple(stream.features or next(iter(stream), {}))
        return Opened(source, config, wanted, columns, caption_reader(columns, config), stream)
    rows = open_rows(source, config.split, config.subset)
    read = reader_of(rows.columns, config, languages, otherwise)
    found = survey(rows, read, wanted, config.max_bad_share, needed)
    return Opened(source, config, wanted, rows.columns, read, rows=rows, found=found)


def open_pictures(
    source: str,
    config: PicturesConfig,
    languages: tuple[str, ...] = (),
    needed: str = "",
    otherwise: str = "",
) -> Opened:
    opened = open_data(source, config, languages, needed, otherwise)
    picture_reader(None, opened.columns, config)
    return opened


def open_text(source: str, config: SourceConfig, languages: tuple[str, ...] = ()) -> Opened:
    return open_data(source, config, languages, needed="en")


def image_captions(
    opened: Opened,
    run: RunConfig,
    vae: AutoencoderKL,
    tokenizer: Any,
    cache: Path,
    dropout: float = 0.0,
    prompt: str = "",
    argument: str = "output_dir",
) -> CachedPictures | StreamedPictures:
    """(latents, caption) samples without an end; of a stream (pixels, caption).

    `dropout` is the share of empty captions, `prompt` stands in the place of each other one. `argument` is
    what the folder `cache` was given by.
    """
    state, config = state_of_processes(), opened.config
    assert isinstance(config, PicturesConfig)
    say(opened, tokenizer, state)
    if opened.rows is None or opened.found is None:
        vae.to(state.device)
        bad = new_bad(config.max_bad_share)
        stream = picture_stream(
            opened.stream, opened.columns, opened.wanted, config, share_of(run, state), bad
        )
        stream.dropout = dropout
        return stream
    rows, found = opened.rows, opened.found
    pictures = picture_reader(rows.folder, rows.columns, config)
    sizes = bucket_sizes(config.resolution, config.buckets)
    buckets = stored_latents(
        vae, rows, pictures, found.usable, sizes, found.bad, cache, state, config.views, argument
    )
    return CachedPictures(rows, opened.read, found, buckets, config, run, dropout, prompt)


class ParallelText(torch.utils.data.Dataset):
    """Endless (text in some language, its English), each a function of (seed, index)."""

    items = None

    def __init__(self, opened: Opened, run: RunConfig, share: Share) -> None:
        self.opened, self.seed = opened, run.seed
        self.order: LanguageOrder | None = None
        if opened.found is not None:
            self.order = LanguageOrder(opened.found, opened.config.temperature, None, run.seed, 7)
        else:
            bad = new_bad(opened.config.max_bad_share)
            self.stream = Stream(opened.stream, self.kind, share, opened.config.shuffle_buffer, bad)

    def kind(self, row: Row) -> int | None:
        captions = self.opened.read(row)
        if "en" not in captions:
            raise BadSample("no text in 'en'")
        return 0 if usable(captions, self.opened.wanted) else None

    def __getitem__(self, index: int) -> tuple[str, str]:
        random = np.random.default_rng((self.seed, index, 2))
        if self.order is not None and self.opened.rows is not None:
            tag, record = self.order[index]
            captions = self.opened.read(self.opened.rows[record])
        else:
            captions = self.opened.read(self.stream[index][0])
            tag = drawn_from(captions, self.opened.wanted, random)
        # Several texts of a record in both languages are each other's translations in their order.
        place, english = int(random.integers(len(captions[tag]))), captions["en"]
        return captions[tag][place], english[place % len(english)]

    def collate(self, pairs: list[tuple[str, str]]) -> tuple[list[str], list[str]]:
        """Sorted by length, so that the chunks in which they are encoded hold little padding."""
        texts, english = zip(*sorted(pairs, key=lambda pair: len(pair[0].encode())), strict=True)
        return list(texts), list(english)


def parallel_text(opened: Opened, run: RunConfig, tokenizer: Any) -> ParallelText:
    """Samples without an end. English is a language like the others: its texts are their own English."""
    state = state_of_processes()
    say(opened, tokenizer, state)
    return ParallelText(opened, run, share_of(run, state))


def say(opened: Opened, tokenizer: Any, state: PartialState) -> None:
    """How many texts there are in each language, and which share of them is too long for the tower."""
    if state.is_main_process:
        logger.info("%s", told(opened, tokenizer))


def main() -> None:
    app = tyro.extras.SubcommandApp()

    @app.command
    def check(
        source: tyro.conf.Positional[str],
        reading: PicturesConfig = PicturesConfig(),  # noqa: B008 (frozen)
        languages: tuple[str, ...] = (),
        tokenizer: Path | None = None,
    ) -> None:
        """Reads all of it and says what a stage could not use.

        Exit code 0: training would go through. 1: it would stop. 2: a mistake in what was asked.

        Args:
            source: Folder, file, or name of a data set.
            reading: As the stages take it.
            languages: Languages that are wanted; empty means all.
            tokenizer: transformers folder of the text tower, to see which texts are too long for it.
        """
        from training.check import check

        lines, good = check(source, reading, languages, tokenizer)
        print("\n".join(lines))
        raise SystemExit(0 if good else 1)

    log = logging.getLogger("training")
    before = log.level
    log.setLevel(logging.ERROR)  # the report names what is skipped
    try:
        app.cli(config=(tyro.conf.FlagConversionOff,))
    except (ValueError, FileNotFoundError) as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None
    finally:
        log.setLevel(before)


if __name__ == "__main__":
    main()
