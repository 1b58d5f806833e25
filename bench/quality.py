"""What the bundled model is worth: pictures by a judge in pixel space, retrieval, zero-shot classification.

    python -m bench.quality                                    what it was taught; half an hour on two cores
    python -m bench.quality --emoji 20 --parts generation      a quick look
    python -m bench.quality --parts groups grounds             what the GPU's recipe teaches beside
    python -m bench.quality --write                            also into the model card and docs/results.md

Prompts of `generation` are plain CLDR names; names that training never saw in their language are counted
apart (`unseen`). In `pairs` and `groups` two of the emoji were never shown together, in `grounds` the emoji
never on that ground, and a picture on another ground is wrong. Seeds are fixed: prompt number n of the
sample is drawn with seed n, in every language.
"""

import argparse
import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from altdiffusion import AltCLIP, AltDiffusionPipeline, bundled
from altdiffusion.languages import LANGUAGES
from bench.judge import Judge, figures, ground_of, held_out_groups, plain
from bench.quality_report import MARK, publish, tables
from bench.report import Start, parser, tell
from training.captions import TEMPLATES, Captions, fill, held_out_pair
from training.emoji import (
    Scene,
    centred,
    draw,
    in_a_row,
    in_rows_of_two,
    load_emoji,
    random_scene,
    some_emoji,
)
from training.grounds import GROUNDS, held_out_ground, on_ground

PARTS = (
    "judge",
    "generation",
    "templates",
    "keywords",
    "pairs",
    "groups",
    "grounds",
    "retrieval",
    "zero-shot",
)
#: Three and four emoji, and grounds by their colour's name, which training/recipes/emoji-gpu teaches alone.
MORE = ("groups", "grounds")
BATCH = 25


def sample(characters: list[str], size: int) -> list[str]:
    """`size` of them, always the same, in an order that says nothing about their kind."""
    order = np.random.default_rng(2026).permutation(len(characters))
    return [characters[i] for i in order[:size]]


def pictures(
    pipeline: AltDiffusionPipeline, prompts: Sequence[str], preset: str = "exact", **given: Any
) -> list[Image.Image]:
    """One picture for each prompt, prompt n with seed n; what is not given is the model's own."""
    drawn = []
    for first in range(0, len(prompts), BATCH):
        part = list(prompts[first : first + BATCH])
        generators = [torch.Generator().manual_seed(first + n) for n in range(len(part))]
        drawn += pipeline(part, generator=generators, preset=preset, **given).images
    return drawn


def covered(model: str | Path | None) -> list[str]:
    """What the model draws by its card, or by the list beside a stage's folder, or else what stages draw."""
    folder = bundled.FOLDER if model is None else Path(model)
    if (folder / bundled.CARD).is_file():
        return bundled.card(folder)["covered"]
    listed = folder.parent / "drawn.json"
    if listed.is_file():
        return json.loads(listed.read_text(encoding="utf-8"))["covered"]
    return list(load_emoji().characters)


def measure_judge(pipeline: AltDiffusionPipeline, judge: Judge) -> dict:
    """The judge on real scenes of every emoji, on pairs, and on what the autoencoder makes of them."""
    scenes = [plain(random_scene(7, n, (c,), pastel=0.5)) for n, c in enumerate(judge.characters)]
    side, pairs = pipeline.vae.config.sample_size, held_out_groups(500)
    singles = [draw(scene, side) for scene in scenes]
    both = [draw(in_a_row(tuple(pair)), side) for pair in pairs]
    return {
        "real": figures(judge.ranks(singles, list(judge.characters))),
        "reconstructions": figures(judge.ranks(rebuilt(pipeline, singles), list(judge.characters))),
        "real pairs": figures(judge.group_ranks(both, pairs)),
        "reconstructed pairs": figures(judge.group_ranks(rebuilt(pipeline, both), pairs)),
    }


@torch.no_grad()
def rebuilt(pipeline: AltDiffusionPipeline, real: list[Image.Image]) -> list[Image.Image]:
    """What the autoencoder makes of the pictures."""
    made = []
    for first in range(0, len(real), 64):
        images = pipeline.image_processor.preprocess(real[first : first + 64])
        latents = pipeline.vae.encode(images).latent_dist.mean
        made += pipeline.image_processor.postprocess(pipeline.vae.decode(latents).sample)
    return made


def measure_generation(
    pipeline: AltDiffusionPipeline,
    judge: Judge,
    scenes: Sequence[Scene],
    languages: Sequence[str],
    write_prompt: Callable[[str, Scene], str | None],
    seen: Callable[[str, Scene], bool],
) -> dict:
    """Top-1 and top-5 per language; prompts for which `seen` is False are counted apart."""
    table, apart = {}, []
    for tag in tqdm(languages, desc="languages", disable=None):
        asked = [(prompt, scene) for scene in scenes if (prompt := write_prompt(tag, scene)) is not None]
        ranks = ranks_of(judge, pictures(pipeline, [prompt for prompt, _ in asked]), [s for _, s in asked])
        known = np.array([seen(tag, scene) for _, scene in asked])
        table[tag] = figures(ranks[known])
        apart += ranks[~known].tolist()
    return {
        "languages": table,
        "unseen": figures(np.array(apart)) if apart else None,
        **summary(table, "top5"),
    }


def ranks_of(judge: Judge, drawn: list[Image.Image], scenes: list[Scene]) -> np.ndarray:
    """The judge's, of scenes that have all one emoji or all several; where captions name the ground, another
    one puts the picture behind all emoji."""
    wanted = ["".join(scene.characters) for scene in scenes]
    several = any(len(characters) > 1 for characters in wanted)
    ranks = (judge.group_ranks if several else judge.ranks)(drawn, wanted)
    right = [
        not scene.ground or ground_of(one) == scene.ground for one, scene in zip(drawn, scenes, strict=True)
    ]
    return np.where(right, ranks, len(judge.characters))


def held_out_grounds(characters: Sequence[str]) -> list[Scene]:
    """Of each emoji the scene on one of the grounds on which training never shows it, if there is any."""
    held = [[ground for ground in GROUNDS if held_out_ground((c,), ground)] for c in characters]
    return [
        on_ground(centred(c), grounds[n % len(grounds)])
        for n, (c, grounds) in enumerate(zip(characters, held, strict=True))
        if grounds
    ]


def summary(table: dict[str, dict], key: str) -> dict:
    """Mean over languages and the worst language, each also as a share of English; 0 without English."""
    values = {tag: row[key] for tag, row in table.items()}
    english = values.get("en")
    worst = min(values, key=values.__getitem__)
    mean = float(np.mean(list(values.values())))
    return {
        "mean": mean,
        "worst": worst,
        "mean/english": mean / english if english else 0.0,
        "worst/english": values[worst] / english if english else 0.0,
    }


def held_out_scenes(number: int, emoji: int = 0) -> list:
    """Scenes of two to four emoji, no two with the same set; a tenth hold a pair that training never drew."""
    scenes, sets, index = [], set(), 0
    characters = some_emoji(emoji).characters
    while len(scenes) < number:
        scene = random_scene(987_654_321, index, characters, counts=(2, 3, 4), pastel=0.5)
        index += 1
        wants_pair = len(scenes) % 10 == 0
        if frozenset(scene.characters) not in sets and held_out_pair(scene.characters) == wants_pair:
            sets.add(frozenset(scene.characters))
            scenes.append(scene)
    return scenes


def in_parts(encode, items: list, size: int = 100) -> Tensor:
    with torch.no_grad():
        return torch.cat([encode(items[first : first + size]) for first in range(0, len(items), size)])


def measure_retrieval(
    clip: Any, number: int, languages: Sequence[str] = tuple(LANGUAGES), emoji: int = 0
) -> dict:
    """Recall (hit rate) both ways and their mean, MR, per language; each scene, of all emoji or of so many,
    has one caption."""
    scenes, captions = held_out_scenes(number, emoji), Captions(load_emoji())
    images = in_parts(clip.encode_image, [draw(scene, 64) for scene in scenes])
    table = {}
    for tag in languages:
        texts = in_parts(clip.encode_text, [captions.name(scene, tag) for scene in scenes])
        scores = texts @ images.T
        row = {}
        for way, matrix in (("t2i", scores), ("i2t", scores.T)):
            own = matrix.diagonal()[:, None]
            rank = (matrix > own).sum(1)
            row |= {f"{way}@{k}": (rank < k).float().mean().item() for k in (1, 5, 10)}
        table[tag] = row | {"MR": float(np.mean(list(row.values())))}
    return {"scenes": number, "languages": table, **summary(table, "MR")}


def measure_zero_shot(clip: Any, languages: Sequence[str] = tuple(LANGUAGES), number: int = 0) -> dict:
    """The 1,364 emoji, or so many of them, each in a scene of its own, among their names."""
    emoji = some_emoji(number)
    scenes = [random_scene(55_555, n, (c,), pastel=0.5) for n, c in enumerate(emoji.characters)]
    images = in_parts(clip.encode_image, [draw(scene, 64) for scene in scenes])
    table = {}
    for tag in languages:
        texts = in_parts(clip.encode_text, [emoji.names[tag][c] for c in emoji.characters])
        scores = images @ texts.T
        ranks = (scores > scores.diagonal()[:, None]).sum(1).numpy()
        table[tag] = figures(ranks)
    return {"languages": table, **summary(table, "top1")}


class Prompts:
    """Ways to ask for a scene in a language; None where the language has no such way."""

    def __init__(self) -> None:
        self.captions = Captions(load_emoji())

    def name(self, tag: str, scene: Scene) -> str:
        """The plain CLDR name, or names in the language's own list pattern, and the ground if it is named."""
        return self.captions.name(scene, tag)

    def template(self, tag: str, scene: Scene) -> str:
        """The name in the template that no training saw."""
        return fill(TEMPLATES[tag][-1], self.captions.name(scene, tag))

    def keyword(self, tag: str, scene: Scene) -> str | None:
        """A keyword that the towers learnt, and no UNet saw."""
        (character,) = scene.characters
        words = set(self.captions.emoji.keywords[tag][character])
        held = words.difference(self.captions.seen_keywords(tag, character))
        return min(held) if held else None

    def seen(self, tag: str, scene: Scene) -> bool:
        """Whether training saw the names of all its emoji in this language."""
        return not any(self.captions.unseen_name(tag, c) for c in scene.characters)


def drawing(model: str | Path | None, lora: Path | None = None) -> AltDiffusionPipeline:
    pipeline = AltDiffusionPipeline.from_pretrained(model)
    pipeline.set_progress_bar_config(disable=True)
    if lora is not None:
        pipeline.load_lora_weights(lora)
    return pipeline


def encoder(arguments: argparse.Namespace) -> AltCLIP:
    return AltCLIP.from_pretrained(arguments.model)


def run(arguments: argparse.Namespace) -> dict:
    start, prompts, report = Start(), Prompts(), {}
    drawn = functools.cache(lambda: drawing(arguments.model, arguments.lora))
    encoded = functools.cache(lambda: encoder(arguments))
    judge = Judge()

    characters = covered(arguments.model)
    chosen = list(arguments.characters) or sample(characters, arguments.emoji)
    singles = [centred(c) for c in chosen]
    pairs = [in_a_row(tuple(pair)) for pair in held_out_groups(arguments.pairs)]
    sizes = {3: arguments.pairs // 2, 4: arguments.pairs - arguments.pairs // 2}
    groups = [in_rows_of_two(tuple(c)) for size, n in sizes.items() for c in held_out_groups(n, size)]
    grounds = held_out_grounds(arguments.characters or sample(characters, len(characters)))[: arguments.emoji]

    def generation(scenes: Sequence[Scene], prompt: Callable[[str, Scene], str | None]) -> dict:
        return measure_generation(drawn(), judge, scenes, arguments.languages, prompt, prompts.seen)

    measures = {
        "judge": lambda: measure_judge(drawn(), judge),
        "generation": lambda: generation(singles, prompts.name),
        "templates": lambda: generation(singles, prompts.template),
        "keywords": lambda: generation(singles, prompts.keyword),
        "pairs": lambda: generation(pairs, prompts.name),
        "groups": lambda: generation(groups, prompts.name),
        "grounds": lambda: generation(grounds, prompts.name),
        "retrieval": lambda: measure_retrieval(encoded(), arguments.scenes, arguments.languages),
        "zero-shot": lambda: measure_zero_shot(encoded(), arguments.languages),
    }
    for part in arguments.parts:
        report[part] = measures[part]()
    return report | {"made with": start.made_with("torch", "diffusers")}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--model", default=None, help="model folder; the bundled model when left out")
    parts = [part for part in PARTS if part not in MORE]
    options.add_argument(
        "--parts", nargs="+", choices=PARTS, default=parts, help=f"all but {' and '.join(MORE)} when left out"
    )
    options.add_argument("--languages", nargs="+", choices=list(LANGUAGES), default=list(LANGUAGES))
    options.add_argument("--emoji", type=int, default=80, help="emoji per language")
    options.add_argument("--pairs", type=int, default=50, help="pairs and groups per language")
    options.add_argument("--characters", default="", help="these emoji, in the place of a sample")
    options.add_argument("--lora", type=Path, help="folder or file of a LoRA to draw with")
    options.add_argument("--scenes", type=int, default=1000)
    arguments = options.parse_args()
    report = run(arguments)
    tell(report, "quality", MARK, tables, arguments)
    if arguments.write:
        publish(report)


if __name__ == "__main__":
    main()
