"""The emoji's names as parallel text, in the 18 languages and any other of CLDR's: what a language is added
from.

    python -m training.emoji_text --languages el

writes `parallel.jsonl`, from which the new languages are learnt and the old ones are replayed, and
`names.jsonl`, the names by themselves, for the figures. What is held out of training is in neither.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from altdiffusion.languages import LANGUAGES
from training.captions import TEMPLATES, Captions, fill, training_scene
from training.config import parse
from training.emoji import CLDR, Emoji, annotations, list_patterns, load_emoji, unambiguous
from training.samples import shorten


@dataclass(frozen=True)
class EmojiTextConfig:
    """Which languages, and where the two files go."""

    languages: tuple[str, ...]
    """Languages of CLDR beside the 18, like "el"."""
    output_dir: Path = Path("runs/emoji/text")
    scenes: int = 2000
    """Captions of two or three emoji, joined by each language's list pattern."""


def with_languages(emoji: Emoji, *tags: str) -> Emoji:
    """The emoji that have a name in these languages of CLDR's too, with what is written about them there."""
    for tag in tags:
        if not (CLDR / "annotations" / f"{tag}.xml").is_file():
            raise ValueError(f"languages: {shorten(tag, 40)!r}; allowed: a language of CLDR's, like 'el'")
    found = {tag: annotations(tag) for tag in tags if tag not in emoji.names}
    characters = tuple(c for c in emoji.characters if all(c in names for names, _ in found.values()))
    names = emoji.names | {tag: {c: of[c] for c in characters} for tag, (of, _) in found.items()}
    keywords = {tag: unambiguous(words, of, characters) for tag, (of, words) in found.items()}
    patterns = {tag: list_patterns(tag) for tag in found}
    return replace(
        emoji,
        characters=characters,
        names=names,
        keywords=emoji.keywords | keywords,
        list_patterns=emoji.list_patterns | patterns,
    )


def names(captions: Captions) -> Iterator[dict[str, list[str]]]:
    """The names of each emoji."""
    for c in captions.emoji.characters:
        of = captions.emoji.names
        yield {tag: [of[tag][c]] for tag in of if not captions.unseen_name(tag, c)}


def keywords(captions: Captions) -> Iterator[dict[str, list[str]]]:
    """Keywords of each emoji, of which its English name is the translation; then the English ones."""
    for c in captions.emoji.characters:
        words = {tag: list(captions.seen_keywords(tag, c)) for tag in captions.emoji.names}
        yield words | {"en": [captions.emoji.names["en"][c]]}
        yield {"en": words["en"]}


def templates(captions: Captions) -> Iterator[dict[str, list[str]]]:
    for row in names(captions):
        english = row["en"][0]
        filled = {
            tag: [fill(template, row[tag][0]) for template in TEMPLATES[tag][:-1]]
            for tag in LANGUAGES
            if tag in row
        }
        yield filled | {"en": [english]}
        yield {"en": filled["en"]}


def scenes(captions: Captions, number: int) -> Iterator[dict[str, list[str]]]:
    for index in range(number):
        scene = training_scene(0, index, captions.emoji.characters, (2, 3))
        seen = [
            tag
            for tag in captions.emoji.names
            if not any(captions.unseen_name(tag, c) for c in scene.characters)
        ]
        yield {tag: [captions.name(scene, tag)] for tag in seen}


def write(config: EmojiTextConfig) -> None:
    captions = Captions(with_languages(load_emoji(), *config.languages))
    config.output_dir.mkdir(parents=True, exist_ok=True)
    parallel = [
        *names(captions),
        *keywords(captions),
        *templates(captions),
        *scenes(captions, config.scenes),
    ]
    for name, rows in {"parallel": parallel, "names": names(captions)}.items():
        lines = [
            json.dumps({"captions": {tag: texts for tag, texts in row.items() if texts}}, ensure_ascii=False)
            for row in rows
            if any(row.values())
        ]
        (config.output_dir / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    config = parse(EmojiTextConfig)
    try:
        write(config)
    except (ValueError, FileNotFoundError) as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
