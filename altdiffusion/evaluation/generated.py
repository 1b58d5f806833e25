"""Pictures drawn from a data set's captions, language by language, and how good they are.

After MG-18, the AltDiffusion paper's protocol: the first caption of each picture in each language, and all
languages on the same pictures. Caption n is drawn with seed n in every language, so pictures with the same
number differ in nothing but the language of the text.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from altdiffusion.evaluation import metrics
from altdiffusion.evaluation.datasets import Captioned, Found, Picture, digest
from altdiffusion.evaluation.metrics import Score
from altdiffusion.evaluation.tasks import Features
from altdiffusion.generation import complete, generate
from altdiffusion.images import ImageError, read_provenance, save_png
from altdiffusion.requests import BadRequest, GenerateRequest

OnStep = Callable[[int, int], None] | None


@dataclass(frozen=True)
class Parallel:
    """Pictures with one caption in each language; `english` where the data has it, asked for or not."""

    name: str
    pictures: tuple[Picture, ...]
    captions: dict[str, tuple[str, ...]]
    english: tuple[str, ...] | None


@dataclass(frozen=True)
class Generated:
    """What one data set in one language gave. `distances` are to the data's own pictures.

    `chance` is what consistency would be between pictures of different captions. `data` is a SHA-256.
    """

    data_set: str
    language: str
    pictures: int
    scores: dict[str, Score]
    distances: dict[str, float]
    chance: float | None
    data: str


def parallel(found: Mapping[str, Found], wanted: Sequence[str], count: int | None) -> Parallel:
    """The first `count` pictures with a caption in all of `wanted`, and in English where there is any."""
    tags = [*wanted, *(["en"] if "en" in found and "en" not in wanted else [])]
    read: dict[str, Captioned] = {tag: found[tag].read(tag) for tag in tags}
    captions = {
        tag: {
            Path(picture.name).name: texts[0]
            for picture, texts in zip(data.pictures, data.captions, strict=True)
        }
        for tag, data in read.items()
    }
    kept = [
        picture
        for picture in read[wanted[0]].pictures
        if all(Path(picture.name).name in by_name for by_name in captions.values())
    ][:count]
    name = found[wanted[0]].name
    if len(kept) < 2:
        raise BadRequest(
            f"data: {name} has {len(kept)} pictures with a caption in {', '.join(tags)}; allowed 2"
        )
    chosen = {
        tag: tuple(by_name[Path(picture.name).name] for picture in kept) for tag, by_name in captions.items()
    }
    return Parallel(name, tuple(kept), {tag: chosen[tag] for tag in wanted}, chosen.get("en"))


def requests(data: Parallel, tag: str, settings: Mapping[str, str]) -> list[GenerateRequest]:
    """Caption n with seed n; what `settings` leaves open is the model's own."""
    return [
        GenerateRequest.from_text(prompt=text, seed=str(number), language=tag, **settings)
        for number, text in enumerate(data.captions[tag])
    ]


def draw(
    pipeline: Any, wanted: Sequence[GenerateRequest], folder: Path, part: Callable[[int], OnStep]
) -> tuple[Picture, ...]:
    """A file for each request. One that is there and says that it was made just so is not drawn again."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = []
    for number, request in enumerate(wanted):
        file = folder / f"{number:05}.png"
        if not _is_drawn(file, complete(request, pipeline.generation_defaults), pipeline.fingerprint):
            (made,) = generate(pipeline, request, part(number))
            save_png(made.image, file, made.provenance, overwrite=True)
        pictures.append(Picture(file, file.name))
    return tuple(pictures)


def _is_drawn(file: Path, request: GenerateRequest, fingerprint: str) -> bool:
    if not file.exists():
        return False
    try:
        made = read_provenance(file)
    except ImageError:
        return False
    names = ("prompt", "negative_prompt", "seed", "steps", "guidance_scale", "width", "height", "language")
    wanted = {name: getattr(request, name) for name in names} | {"fingerprint": fingerprint}
    if request.scheduler is not None:
        wanted["scheduler"] = request.scheduler
    return all(getattr(made, name) == value for name, value in wanted.items())


def scored(
    data: Parallel, drawn: Mapping[str, tuple[Picture, ...]], features: Features
) -> Iterator[Generated]:
    """An outcome for each language of `drawn`."""
    real = features.of_pictures(data.pictures)
    images = torch.stack([features.of_pictures(pictures) for pictures in drawn.values()])
    english = None if data.english is None else features.of_texts(data.english)
    several = len(drawn) > 1
    alike = metrics.consistency(images) if several else None
    chance = metrics.consistency_by_chance(images) if several else None
    for row, tag in enumerate(drawn):
        texts = features.of_texts(data.captions[tag])
        values = {
            "CLIP-sim": metrics.clip_similarity(images[row], texts),
            "CLIP-sim of the data": metrics.clip_similarity(real, texts),
        }
        if english is not None:
            values["CLIP-sim with English"] = metrics.clip_similarity(images[row], english)
        if alike is not None:
            values["consistency"] = alike[row]
        yield Generated(
            data.name,
            tag,
            len(real),
            {name: metrics.mean_score(of_each) for name, of_each in values.items()},
            {
                "FD": metrics.frechet_distance(real, images[row]),
                "KID": metrics.kernel_distance(real, images[row]),
            },
            None if chance is None else chance[row].item(),
            digest(data.pictures, [data.captions[tag], data.english]),
        )
