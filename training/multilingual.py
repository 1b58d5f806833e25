"""Captions and parallel text in every form that data comes in, and how often each language is drawn.

Forms: `{"en": …, "ar": …}` in one column, a list of {lang, text}, columns `caption_en`, `caption_ar` (or, for
parallel text, `en`, `ar`), or one plain column beside which a `language` column may stand.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from training.order import Mixed, Shuffled
from training.samples import Bad, BadSample, Row, Rows, shorten

#: Columns that hold captions; of a record the first that has any. A webdataset has `json` and `txt`.
NAMES = ("captions", "translation", "json", "caption", "text", "txt", "prompt")
#: Columns of a folder of pictures that nothing is said about.
ONLY_PICTURES = ("file_name",)
TAG = re.compile(r"[a-z]{2,3}([-_][A-Za-z0-9]+)*")
PREFIXED = re.compile(r"(?:captions?|text)_(?P<tag>[a-z]{2,3}(?:[-_][A-Za-z0-9]+)*)")
#: Keys of a {lang, text} item, as data sets write them.
LANGUAGE_KEYS, TEXT_KEYS = ("lang", "language"), ("text", "caption")
#: Texts per language that are tokenized to see how many are too long.
TOKENIZED = 1000

Captions = dict[str, tuple[str, ...]]
"""Texts by language tag; several where a sample has several."""


@dataclass(frozen=True)
class SourceConfig:
    """How data is read and how often each language is drawn."""

    split: str = "train"
    subset: str = ""
    """Configuration of a data set that has several, as `datasets` calls it."""
    caption_column: str = ""
    """Column of the captions. Empty: caption_xx columns, or the first of captions, translation, caption, …"""
    plain_language: str = "en"
    """Language of captions that do not say theirs."""
    language_weights: tuple[str, ...] = ()
    """Like "zh=2 en=0.5"; 1 for a language that is not named, 0 leaves it out."""
    temperature: float = 1.0
    """A language is drawn in proportion to its number of texts to the power 1 / temperature."""
    max_bad_share: float = 0.01
    """Stop when more than this share of the samples cannot be used."""
    streaming: bool = False
    """Read on and on instead of by place: for data that is too large for this disk."""
    shuffle_buffer: int = 1000
    """Samples of a stream among which the next one is drawn, after its files were shuffled."""

    def __post_init__(self) -> None:
        weights(self)
        if not self.temperature > 0:
            raise ValueError(f"temperature: {self.temperature}; allowed: above 0")
        if self.streaming and self.temperature != 1:
            raise ValueError(
                f"temperature: {self.temperature} needs counts, which a stream has not; "
                "allowed: 1, or streaming False"
            )
        if not 0 <= self.max_bad_share < 1:
            raise ValueError(f"max_bad_share: {self.max_bad_share}; allowed: from 0 to below 1")
        if self.shuffle_buffer < 1:
            raise ValueError(f"shuffle_buffer: {self.shuffle_buffer}; allowed: 1 and up")


def weights(config: SourceConfig) -> dict[str, float]:
    found = {}
    for item in config.language_weights:
        tag, _, number = item.partition("=")
        if not re.fullmatch(r"\d+(\.\d*)?|\.\d+", number) or not TAG.fullmatch(tag):
            raise ValueError(f'language_weights: {shorten(item, 40)!r}; allowed: tag=number, like "zh=2"')
        found[base(tag)] = float(number)
    return found


def base(tag: str) -> str:
    """The language of a tag: scripts and regions are set aside."""
    return tag.strip().replace("_", "-").split("-")[0].lower()


def reader_of(
    columns: tuple[str, ...], config: SourceConfig, languages: tuple[str, ...], otherwise: str
) -> Callable[[Row], Captions]:
    """What finds the captions of a record; of pictures alone the caption is `otherwise`, if there is one."""
    if otherwise and columns == ONLY_PICTURES:
        tag = base(languages[0] if languages else config.plain_language)
        return lambda _row: {tag: (otherwise,)}
    return caption_reader(columns, config)


def caption_reader(columns: tuple[str, ...], config: SourceConfig) -> Callable[[Row], Captions]:
    """What finds the captions of a record."""
    if config.caption_column:
        if config.caption_column not in columns:
            raise ValueError(
                f"caption_column: no {shorten(config.caption_column, 40)!r}; allowed: {', '.join(columns)}"
            )
        return lambda row: captions_of(row.get(config.caption_column), row, config.plain_language)
    tagged = {name: match["tag"] for name in columns if (match := PREFIXED.fullmatch(name))}
    if "en" in columns and not tagged:
        tagged = {name: name for name in columns if TAG.fullmatch(name) and name not in {*NAMES, "id", "url"}}
    if tagged:
        return lambda row: captions_of({tag: row.get(name) for name, tag in tagged.items()}, row, "")
    found = [name for name in NAMES if name in columns]
    if columns == ONLY_PICTURES:
        raise ValueError(
            "data: the pictures have no captions; allowed: a .txt for each, metadata.jsonl, "
            "or a stage's instance_prompt"
        )
    if not found:
        raise ValueError(f"caption_column: none found; allowed: {', '.join(columns)}")
    return lambda row: first_captions(row, found, config.plain_language)


def first_captions(row: Row, names: list[str], plain: str) -> Captions:
    values = [row.get(name) for name in names if name != "json" or speaks(row.get(name))]
    return next((found for value in values if (found := captions_of(value, row, plain))), {})


def speaks(value: Any) -> bool:
    """Whether a webdataset's json file holds captions at all: `key` and `url` look like languages."""
    return isinstance(value, Mapping) and any(
        name in NAMES or name == "en" or PREFIXED.fullmatch(name) for name in value
    )


def captions_of(value: Any, row: Row, plain: str) -> Captions:
    """A value of any form by language; empty texts are left out."""
    if isinstance(value, Mapping):
        names = tuple(str(name) for name in value)
        if any(name in NAMES or PREFIXED.fullmatch(name) for name in names):  # a webdataset's json file
            return caption_reader(names, SourceConfig(plain_language=plain or "en"))(dict(value))
        pairs = [(tag, text) for tag in names if TAG.fullmatch(tag) for text in as_list(value[tag])]
    elif isinstance(value, list | tuple):
        pairs = [spoken(item, plain) for item in value]
    else:
        said = next((row[name] for name in (*LANGUAGE_KEYS, "LANGUAGE") if row.get(name)), plain)
        pairs = [(str(said), value)]
    captions: dict[str, list[str]] = {}
    for tag, text in pairs:
        if isinstance(text, str) and text.strip():
            captions.setdefault(base(tag), []).append(text.strip())
    return {tag: tuple(texts) for tag, texts in captions.items()}


def as_list(value: Any) -> Iterable[Any]:
    return value if isinstance(value, list | tuple) else [value]


def spoken(item: Any, plain: str) -> tuple[str, Any]:
    if not isinstance(item, Mapping):
        return plain, item
    tag = next((item[key] for key in LANGUAGE_KEYS if item.get(key)), plain)
    return str(tag), next((item[key] for key in TEXT_KEYS if item.get(key)), None)


def drawn_from(captions: Captions, wanted: Mapping[str, float], random: np.random.Generator) -> str:
    """A language of one record, by weight."""
    tags = sorted(tag for tag in captions if wanted.get(tag, wanted.get("", 0.0)) > 0)
    shares = np.array([wanted.get(tag, wanted.get("", 0.0)) for tag in tags])
    return tags[int(random.choice(len(tags), p=shares / shares.sum()))]


def wanted_languages(config: SourceConfig, languages: tuple[str, ...]) -> dict[str, float]:
    """Weight by tag; what is not named has the weight under "", 0 where `languages` says which are wanted."""
    given = weights(config)
    if not languages:
        return {"": 1.0, **given}
    return {base(tag): given.get(base(tag), 1.0) for tag in languages}


def usable(captions: Captions, wanted: Mapping[str, float]) -> list[str]:
    return [tag for tag in captions if wanted.get(tag, wanted.get("", 0.0)) > 0]


@dataclass
class Survey:
    """Which records have a text in which language, and what was wrong with the others."""

    rows: dict[str, np.ndarray]
    bad: Bad
    unwanted: int
    """Records without a text in a wanted language."""
    wanted: dict[str, float] = field(default_factory=dict)

    @property
    def usable(self) -> np.ndarray:
        """The records with a text in a wanted language."""
        return np.unique(np.concatenate(list(self.rows.values()))) if self.rows else np.empty(0, np.int64)


def survey(
    rows: Rows,
    read: Callable[[Row], Captions],
    wanted: dict[str, float],
    share: float,
    needed: str = "",
) -> Survey:
    """Reads every caption once. `needed` is a language that each record must have."""
    table, bad, unwanted = rows.without_pictures(), Bad(share, len(rows)), 0
    found: dict[str, list[int]] = {}
    for number in range(len(table)):
        try:
            captions = read(table[number])
            if not captions:
                raise BadSample("no text")
            if needed and needed not in captions:
                raise BadSample(f"no text in {needed!r}")
        except BadSample as error:
            bad.add(rows.name(number), error)
            continue
        tags = usable(captions, wanted)
        unwanted += not tags
        for tag in tags:
            found.setdefault(tag, []).append(number)
    if not found:
        asked = ", ".join(tag for tag in wanted if tag) or "any language"
        raise ValueError(f"languages: none of the {len(rows)} samples has a text in {shorten(asked)}")
    return Survey({tag: np.array(found[tag]) for tag in sorted(found)}, bad, unwanted, wanted)


class LanguageOrder:
    """An endless order of (language, record): each language in its share, its records shuffled in rounds.

    `within` are the records it is about, all of them if None.
    """

    def __init__(self, found: Survey, temperature: float, within: np.ndarray | None, *key: int) -> None:
        rows = {
            tag: numbers if within is None else np.intersect1d(numbers, within)
            for tag, numbers in found.rows.items()
        }
        self.rows = {tag: numbers for tag, numbers in rows.items() if len(numbers)}
        self.tags = list(self.rows)
        power = {
            tag: found.wanted.get(tag, found.wanted.get("", 0.0))
            * len(found.rows[tag]) ** (1 / temperature)
            * (len(self.rows[tag]) / len(found.rows[tag]))
            for tag in self.tags
        }
        samples = len(np.unique(np.concatenate(list(self.rows.values()))))
        self.order = Mixed([samples * p / sum(power.values()) for p in power.values()], 1, *key)
        self.shuffled = [Shuffled(len(self.rows[tag]), *key, 1 + n) for n, tag in enumerate(self.tags)]

    def __getitem__(self, position: int) -> tuple[str, int]:
        kind, place = self.order[position]
        tag = self.tags[kind]
        return tag, int(self.rows[tag][self.shuffled[kind][place]])


def summary(samples: str, texts: Mapping[str, list[str]], counts: Mapping[str, int], tokenizer: Any) -> str:
    """One line: how many samples, and of each language how many texts and which share of them is cut."""
    parts = []
    for tag, count in counts.items():
        share = "" if tokenizer is None else f" ({100 * cut_share(texts[tag], tokenizer):.1f} % cut)"
        parts.append(f"{tag} {count:,}{share}")
    return f"{samples}; texts: {', '.join(parts)}"


def cut_share(texts: list[str], tokenizer: Any) -> float:
    """Share of texts whose end the text tower never sees."""
    from altdiffusion.conditioning import MAX_LENGTH

    lengths = [len(ids) for ids in tokenizer(texts, verbose=False).input_ids]
    return sum(length > MAX_LENGTH for length in lengths) / max(1, len(lengths))


def surveyed_texts(rows: Rows, read: Callable[[Row], Captions], found: Survey) -> dict[str, list[str]]:
    """Up to `TOKENIZED` texts of each language, spread over the whole data."""
    table = rows.without_pictures()
    return {
        tag: [read(table[int(n)])[tag][0] for n in numbers[:: max(1, len(numbers) // TOKENIZED)][:TOKENIZED]]
        for tag, numbers in found.rows.items()
    }
