"""The texts that a run can meet, where they have an end: what a cache is filled with beforehand."""

from collections.abc import Iterable, Iterator
from typing import Any

from training.captions import Captions
from training.emoji import load_emoji
from training.multilingual import usable
from training.opened import Opened


def known_texts(config: Any, opened: Opened | None, characters: Iterable[str]) -> Iterator[str]:
    """What a text-to-image run on `opened`, or on these emoji, asks its text tower."""
    yield from ("", *config.prior.prompts, *config.validation.prompts)
    if config.instance_prompt:
        yield config.instance_prompt
    elif opened is not None:
        yield from texts_of(opened)
    else:
        yield from emoji_texts(characters, config.languages)


def texts_of(opened: Opened, tag: str | None = None) -> Iterator[str]:
    """Those of all samples in the wanted languages, or in the language `tag` alone."""
    assert opened.rows is not None and opened.found is not None
    table = opened.rows.without_pictures()
    for number in opened.found.usable:
        captions = opened.read(table[int(number)])
        for language in usable(captions, opened.wanted) if tag is None else [tag]:
            yield from captions[language]


def emoji_texts(characters: Iterable[str], languages: tuple[str, ...]) -> Iterator[str]:
    """Every caption of these emoji, each by itself. English stands in where a name is held out."""
    captions = Captions(load_emoji())
    for character in dict.fromkeys(characters):
        for tag in dict.fromkeys((*(languages or captions.tags), "en")):
            if not captions.unseen_name(tag, character):
                yield from captions.of_one(character, tag)
