"""A language more for a trained AltCLIP, from parallel text alone: what m2, m9 and m18 were by hand.

The tower learns to say of a text in the new language what it says itself of the English one (teacher
learning, Chen et al. 2022, section 3.2, with the tower as its own teacher), and to go on saying of texts in
the old languages what it said. So the image tower, and a UNet that the tower drives, need not change.
"""

import copy
import json
import logging
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from altdiffusion import cards
from altdiffusion.model import AltCLIP
from training.config import OptimConfig, RunConfig, parse
from training.data import open_data, open_text, say
from training.export import Made, finish
from training.loop import Run
from training.multilingual import SourceConfig
from training.new_language import CHUNK, Learning, NewAndOld, Texts, Tower
from training.opened import Opened
from training.processes import state_of_processes
from training.samples import shorten
from training.stage import run_stage
from training.student import still
from training.vocabulary import GrownEmbedding, extended, new_pieces, starting_rows

logger = logging.getLogger(__name__)
#: Records that the new pieces are learnt from, and that the figures are measured on.
LEARNT_FROM, MEASURED = 100_000, 2000


@dataclass(frozen=True)
class AddLanguageConfig:
    """A language more for an AltCLIP: the new one is learnt, the old ones are replayed."""

    output_dir: Path
    model: Path
    """AltCLIP that learns the language, in any published form: a folder or a Hub name."""
    languages: tuple[str, ...]
    """The new languages as the data call them, like "el"."""
    data: str
    """Parallel text of the new languages and English: a folder, a file, or a data set's name."""
    reading: SourceConfig = field(default_factory=SourceConfig)
    replay: str = ""
    """Texts in the languages that the model has; they need no translation. Empty: those of `data`."""
    replay_reading: SourceConfig = field(default_factory=SourceConfig)
    replay_share: float = 0.5
    """Share of the samples that are replayed."""
    trainable: Literal["tower", "new_rows"] = "tower"
    """tower: all of the text tower but the old words' rows. new_rows: the new words' rows alone; the old
    languages then stay bit for bit what they were, and nothing is replayed."""
    vocabulary: int = 4000
    """The most pieces that are added, for words with signs that the tokenizer does not know. 0 adds none."""
    sequence_weight: float = 0.5
    """Weight of all states of a text beside the first: a UNet attends to every one of them."""
    measured_on: str = ""
    """Parallel text for the figures before and after. Empty: the first texts of `data`."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        if not self.languages or "en" in self.languages:
            raise ValueError(
                f"languages: {shorten(', '.join(self.languages))!r}; allowed: one new language or several, "
                "not English, which they are learnt from"
            )
        if not 0 <= self.replay_share < 1:
            raise ValueError(f"replay_share: {self.replay_share}; allowed: from 0 to below 1")
        if self.vocabulary < 0:
            raise ValueError(f"vocabulary: {self.vocabulary}; allowed: 0 and up")
        if self.trainable == "new_rows" and not self.vocabulary:
            raise ValueError("vocabulary: 0 with trainable new_rows; allowed: 1 and up")
        if self.reading.streaming or self.replay_reading.streaming:
            raise ValueError("streaming: True; allowed: False, as the new words are learnt from all texts")


def open_sources(config: AddLanguageConfig) -> tuple[Opened, Opened | None]:
    """The new languages' texts, and the old ones' where any are replayed."""
    new = open_text(config.data, config.reading, config.languages)
    if config.trainable == "new_rows" or not config.replay_share:
        return new, None
    reading = config.replay_reading if config.replay else config.reading
    without = tuple(f"{tag}=0" for tag in config.languages)
    reading = replace(reading, language_weights=(*reading.language_weights, *without))
    return new, open_data(config.replay or config.data, reading)


def pairs_of(opened: Opened, most: int) -> list[tuple[str, str]]:
    """Up to `most` texts with their English, spread over the data."""
    assert opened.found is not None and opened.rows is not None
    pairs = []
    for number in spread(opened.found.usable, most):
        captions = opened.read(opened.rows[int(number)])
        pairs += [
            (text, captions["en"][place % len(captions["en"])])
            for tag in opened.found.rows
            for place, text in enumerate(captions.get(tag, ()))
        ]
    return pairs


def spread(numbers: np.ndarray, most: int) -> np.ndarray:
    return numbers[:: max(1, -(-len(numbers) // most))]


def grow(clip: AltCLIP, pairs: list[tuple[str, str]], size: int) -> GrownEmbedding:
    """Gives the AltCLIP the words that the texts need and its tokenizer lacks; the old rows stay."""
    old, embeddings = clip.tokenizer, clip.model.text_model.roberta.embeddings
    pieces = new_pieces(old, [text for text, _ in pairs], size)
    clip.tokenizer = extended(old, pieces)
    rows = embeddings.word_embeddings.weight.detach()
    rows = rows[: len(old)] if pieces else rows  # a table may be longer than its tokenizer
    texts = clip.tokenizer([text for text, _ in pairs], add_special_tokens=False, verbose=False).input_ids
    english = old([text for _, text in pairs], add_special_tokens=False, verbose=False).input_ids
    embeddings.word_embeddings = GrownEmbedding(rows, starting_rows(rows, texts, english, len(pieces)))
    logger.info("%d new words, for signs that the tokenizer does not know", len(pieces))
    return embeddings.word_embeddings


def build(clip: AltCLIP, pairs: list[tuple[str, str]], config: AddLanguageConfig) -> Learning:
    """The tower that learns beside the tower as it was; both have the old words' rows in common."""
    model, tokenizer = clip.model.text_model, clip.tokenizer
    still(model)
    model.requires_grad_(False)
    words = model.roberta.embeddings.word_embeddings
    before = Tower(clip, tokenizer)
    if config.trainable == "tower":
        before.model = copy.deepcopy(model, {id(words): words})
    grown = grow(clip, pairs, config.vocabulary)
    if config.trainable == "tower":
        model.requires_grad_(True)
    elif not len(grown.new):
        raise ValueError(
            f"trainable: new_rows, and the tokenizer knows every sign of {', '.join(config.languages)}; "
            "allowed: tower"
        )
    grown.old.requires_grad_(False)
    grown.new.requires_grad_(len(grown.new) > 0)
    return Learning(Tower(clip, clip.tokenizer), before.eval(), config.sequence_weight)


@torch.no_grad()
def retrieval(tower: Tower, opened: Opened) -> dict[str, float]:
    """R@1 of each language's texts among the English ones, by cosine of the first states."""
    assert opened.found is not None and opened.rows is not None
    numbers = spread(opened.found.usable, MEASURED)
    records = [opened.read(opened.rows[int(number)]) for number in numbers]
    known = list(dict.fromkeys(record["en"][0] for record in records))
    tower.eval()

    def pooled(texts: list[str]) -> Tensor:
        parts = [tower(texts[at : at + CHUNK])[0][:, 0, 0] for at in range(0, len(texts), CHUNK)]
        return F.normalize(torch.cat(parts).float(), dim=-1)

    english, figures = pooled(known), {}
    for tag in opened.found.rows:
        pairs = [(record[tag][0], known.index(record["en"][0])) for record in records if tag in record]
        if pairs:
            best = (pooled([text for text, _ in pairs]) @ english.T).argmax(1).cpu()
            figures[tag] = (best == torch.tensor([place for _, place in pairs])).float().mean().item()
    return figures


def report(before: dict[str, float], after: dict[str, float], languages: tuple[str, ...]) -> dict[str, Any]:
    changes = {tag: after[tag] - before[tag] for tag in after if tag not in languages}
    summed = {}
    if changes:
        summed = {
            "old languages, mean change": float(np.mean(list(changes.values()))),
            "old languages, worst change": min(changes.values()),
        }
    return {"before": before, "after": after, **summed}


def train(config: AddLanguageConfig) -> None:
    new, old = open_sources(config)
    measured = open_text(config.measured_on or config.data, config.reading)
    torch.manual_seed(config.run.seed)
    clip = AltCLIP.from_pretrained(str(config.model), dtype=torch.float32, device="cpu")
    before = retrieval(Tower(clip, clip.tokenizer), measured)
    stage = build(clip, pairs_of(new, LEARNT_FROM), config)
    samples = NewAndOld(*texts_of(new, old, config, clip.tokenizer), config.replay_share)
    run = Run.start(config, stage)
    stage.frozen[0].to(run.accelerator.device)
    for batch in run.batches(samples):
        with run.accelerator.autocast():
            loss = run.model(*batch)
        run.step(loss)
    if run.accelerator.is_main_process:
        trained: Any = run.trained()
        figures = report(before, retrieval(trained.tower, measured), config.languages)
        figures["new words"] = len(trained.tower.model.roberta.embeddings.word_embeddings.new)
        export(clip, trained, config)
        (config.output_dir / "report.json").write_text(json.dumps(figures, indent=1))
        finish(config, made(config, figures))


def texts_of(
    new: Opened, old: Opened | None, config: AddLanguageConfig, tokenizer: Any
) -> tuple[Texts, Texts | None]:
    """Both orders, said at the start: how many texts there are of each language."""
    state = state_of_processes()
    for opened in (new, old):
        if opened is not None:
            say(opened, tokenizer, state)
    replayed = None if old is None else Texts(old, config.run.seed, 8)
    if replayed is not None and replayed.order.tags == ["en"] and state.is_main_process:
        logger.warning("replayed: English alone; texts of the model's other languages go with --replay")
    return Texts(new, config.run.seed, 7), replayed


def made(config: AddLanguageConfig, figures: dict[str, Any]) -> Made:
    sources = [cards.name_of(source) for source in (config.data, config.replay) if source]
    return Made(
        title="AltCLIP",
        stage=f"{', '.join(config.languages)} added: the new learnt from the old tower, the old replayed",
        library="transformers",
        task="zero-shot-image-classification",
        bases={"model": config.model},
        data="; ".join(sources),
        languages=tuple(figures["after"]),
        figures=figures,
        metric="R@1 of a language's texts among the English ones",
    )


def export(clip: AltCLIP, trained: Learning, config: AddLanguageConfig) -> None:
    """The AltCLIP in the form it came in, its word embeddings in one piece."""
    model: Any = trained.tower.model.cpu()
    clip.model.text_model = model  # where processes share the weights out, `trained` is a copy
    embeddings = model.roberta.embeddings
    embeddings.word_embeddings = embeddings.word_embeddings.merged()
    for settings in (model.config, clip.model.config.text_config):
        settings.vocab_size = embeddings.word_embeddings.num_embeddings
    clip.save_pretrained(config.output_dir / "model")


def main() -> None:
    run_stage(parse(AddLanguageConfig), train)


if __name__ == "__main__":
    main()
