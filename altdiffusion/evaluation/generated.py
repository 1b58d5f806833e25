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
from altdiffusion.requests import BadRequest, GenerateRequest, shorten

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
    names = _names(read)
    first = {
        tag: {name: texts[0] for name, texts in zip(names[tag], data.captions, strict=True)}
        for tag, data in read.items()
    }
    shared = [
        (name, picture)
        for name, picture in zip(names[wanted[0]], read[wanted[0]].pictures, strict=True)
        if all(name in captions for captions in first.values())
    ][:count]
    data_set = found[wanted[0]].name
    if len(shared) < 2:
        spoken = ", ".join(tags)
        raise BadRequest(
            f"data: {data_set} has {len(shared)} pictures with captions in {spoken}; allowed 2 or more"
        )
    chosen = {tag: tuple(captions[name] for name, _ in shared) for tag, captions in first.items()}
    pictures = tuple(picture for _, picture in shared)
    return Parallel(data_set, pictures, {tag: chosen[tag] for tag in wanted}, chosen.get("en"))


def _names(read: Mapping[str, Captioned]) -> dict[str, list[str]]:
    """What each language calls its pictures: without folders, which not all owners write, if that will do."""
    full = {tag: [picture.name for picture in data.pictures] for tag, data in read.items()}
    short = {tag: [Path(name).name for name in names] for tag, names in full.items()}
    return short if all(len(set(names)) == len(names) for names in short.values()) else full


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
            try:
                save_png(made.image, file, made.provenance, overwrite=True)
            except OSError as error:  # the disk is full, or the folder went away meanwhile
                name = shorten(str(file))
                raise BadRequest(f"output: {name} was not saved ({error.strerror or error})") from error
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
    wanted = {name: getattr(request, name) for name in (*names, "preset")} | {"fingerprint": fingerprint}
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
