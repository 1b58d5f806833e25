"""Writes emoji data sets for `altdiffusion evaluate`, the same scenes that bench.quality measures.

    python -m bench.emoji_data FOLDER                 scenes, classes and names in 18 languages
    altdiffusion evaluate retrieval --data FOLDER/scenes -o scenes.json
    altdiffusion evaluate zero-shot --data FOLDER/classes -o classes.json
    altdiffusion evaluate generation --data FOLDER/names --pictures 200 -o names.md

The 1,000 held-out scenes are in CLIP_benchmark's annotation JSON, and so are the emoji that the bundled model
draws, each with its name. The 1,364 classes are a folder each, with their names and the bare name as the only
template.
"""

import argparse
import json
from pathlib import Path

from altdiffusion.languages import LANGUAGES
from bench.quality import covered, held_out_scenes, sample
from training.captions import Captions
from training.emoji import centred, draw, load_emoji, random_scene


def write_scenes(folder: Path, number: int) -> None:
    """Scenes of two to four emoji with their captions."""
    (folder / "images").mkdir(parents=True)
    scenes, captions = held_out_scenes(number), Captions(load_emoji())
    names = [f"{n:04}.png" for n in range(number)]
    for name, scene in zip(names, scenes, strict=True):
        draw(scene, 64).save(folder / "images" / name)
    for tag in LANGUAGES:
        texts = [captions.name(scene, tag) for scene in scenes]
        write_json(folder / f"scenes-{tag}.json", {"image_paths": names, "annotations": texts})


def write_names(folder: Path, number: int) -> None:
    """Emoji by themselves, in the order in which bench.quality draws them from their names."""
    (folder / "images").mkdir(parents=True)
    characters, captions = sample(covered(None), number), Captions(load_emoji())
    names = [f"{n:04}.png" for n in range(len(characters))]
    for name, character in zip(names, characters, strict=True):
        draw(centred(character), 64).save(folder / "images" / name)
    for tag in LANGUAGES:
        texts = [captions.name(centred(character), tag) for character in characters]
        write_json(folder / f"names-{tag}.json", {"image_paths": names, "annotations": texts})


def write_classes(folder: Path) -> None:
    """Each emoji in a scene of its own; the folder's name is its code points."""
    emoji = load_emoji()
    folders = ["-".join(f"{ord(letter):x}" for letter in character) for character in emoji.characters]
    for number, (name, character) in enumerate(zip(folders, emoji.characters, strict=True)):
        (folder / name).mkdir(parents=True)
        draw(random_scene(55_555, number, (character,), pastel=0.5), 64).save(folder / name / "0.png")
    spoken = {
        tag: {name: emoji.names[tag][c] for name, c in zip(folders, emoji.characters, strict=True)}
        for tag in LANGUAGES
    }
    write_json(folder / "classnames.json", spoken)
    write_json(folder / "templates.json", {tag: ["{}"] for tag in LANGUAGES})


def write_json(file: Path, content: object) -> None:
    file.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="a new folder")
    parser.add_argument("--scenes", type=int, default=1000)
    arguments = parser.parse_args()
    write_scenes(arguments.folder / "scenes", arguments.scenes)
    write_classes(arguments.folder / "classes")
    write_names(arguments.folder / "names", len(covered(None)))


if __name__ == "__main__":
    main()
