"""Packs trained stages into the folder that ships: fp16 shards, AltCLIP, card, licences, recipe, manifest,
and the emoji with their names and vectors as a collection to search."""

import json
import math
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from diffusers import StableDiffusionPipeline
from PIL import Image
from transformers import AltCLIPModel, AutoTokenizer, CLIPImageProcessor

from altdiffusion import aside, bundled, checkpoints
from altdiffusion.languages import LANGUAGES
from altdiffusion.model import AltCLIP
from altdiffusion.serving.collection import NAMES, SHEET, Collection
from training import export
from training.config import parse
from training.emoji import centred, draw, load_emoji

#: Shards stay below the size at which code hosts and reviewers begin to complain.
SHARD_SIZE = "15MB"
#: The stages that the bundled model comes from, in the order of training.
STAGES = (
    "autoencoder",
    "colours",
    "teacher",
    "distill",
    "distill_more",
    "contrast",
    "english_unet",
    "unet",
    "teacher_more",
    "distill_again",
    "contrast_again",
    "unet_again",
    "distill_lists",
    "contrast_lists",
    "unet_lists",
    "unet_lists_more",
    "contrast_names",
    "distill_arabic",
    "contrast_names_more",
    "contrast_names_last",
    "unet_all",
    "distill_words",
    "distill_keywords",
    "contrast_keywords",
    "unet_words",
    "distill_keywords_more",
    "distill_keywords_last",
    "distill_strangers",
    "contrast_strangers",
    "unet_pairs",
    "unet_gpu",
    "distill_all_words",
    "unet_words_last",
    "distill_apart",
    "unet_apart",
    "distill_apart_more",
    "contrast_apart",
    "distill_apart_words",
    "unet_apart_last",
)
#: Those of them that ship: the UNet with its autoencoder; both towers, whose text tower conditions the UNet.
UNET, TOWERS = "unet_apart_last", "distill_apart_words"
#: Texts of the licences that the pictures and names came under, as Debian ships them.
LICENCES = {
    "LICENSE-font.txt": "/usr/share/doc/fonts-noto-color-emoji/copyright",
    "LICENSE-cldr.txt": "/usr/share/doc/unicode-cldr-core/copyright",
}


@dataclass(frozen=True)
class PackageConfig:
    """Which stages, where they lie, and what a request that leaves it open is drawn with."""

    stages: Path = Path("runs/emoji")
    """Folder of the stages, called as that of their recipes."""
    chain: tuple[str, ...] = STAGES
    """The stages that the model comes from, in the order of training."""
    unet: str = UNET
    """The one of them whose UNet and autoencoder ship."""
    towers: str = TOWERS
    """The one of them whose towers ship."""
    base: Path | None = None
    """Packed model that the newest stages went on from: of stages whose folders are gone, UNet, autoencoder,
    towers and recipes are taken from there. None: all folders are there."""
    output: Path = bundled.FOLDER
    steps: int = 20
    guidance_scale: float = 3.0
    push_to_hub: str | None = None
    """Also upload it, as owner/name."""

    def __post_init__(self) -> None:
        for name in ("unet", "towers"):
            if (stage := getattr(self, name)) not in self.chain:
                raise ValueError(f"{name}: {stage!r:.80}; allowed: one of chain, {', '.join(self.chain)}")


def package(config: PackageConfig) -> None:
    with aside.folder(config.output) as place:
        fill(config, place)
    export.upload(config.output, config.push_to_hub, "The emoji model")


def fill(config: PackageConfig, place: Path) -> None:
    altclip = folder_of(config.towers, config, "altclip")
    clip = AltCLIPModel.from_pretrained(altclip, dtype=torch.float16)
    clip.save_pretrained(place / "altclip", max_shard_size=SHARD_SIZE)
    pipeline = StableDiffusionPipeline.from_pretrained(
        folder_of(config.unet, config), text_encoder=clip.text_model, dtype=torch.float16
    )
    pipeline.save_pretrained(place, max_shard_size=SHARD_SIZE)
    AutoTokenizer.from_pretrained(altclip).save_pretrained(place / "altclip")
    CLIPImageProcessor.from_pretrained(altclip).save_pretrained(place / "altclip")
    card = describe(config, pipeline)
    (place / bundled.CARD).write_text(json.dumps(card, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    (place / "README.md").write_text(model_card(card, config), encoding="utf-8")
    for name, source in LICENCES.items():
        shutil.copyfile(source, place / name)
    write_collection(place)
    Collection(place / "collection").write_vectors(AltCLIP.from_pretrained(place))
    checkpoints.forget_paths(place)
    for file in place.rglob("*.safetensors"):
        file.chmod(0o644)  # they come out for their owner alone; whoever installs the package shall read them
    bundled.write_manifest(place)


def folder_of(stage: str, config: PackageConfig, part: str = "") -> Path:
    """The stage's model, or what `base` has of it in `part` where that is gone."""
    folder = config.stages / stage / "model"
    return folder if config.base is None or folder.exists() else config.base / part


def write_collection(folder: Path, side: int = 64) -> None:
    """`collection/`: what the app searches when it has no other index.

    `names.json` are the names of all emoji of the small world in 18 languages, `sheet.webp` their pictures in
    rows, in the same order: the font's own, as the model's drawings would be judged by what drew them.
    """
    emoji = load_emoji()
    place = folder / "collection"
    place.mkdir(exist_ok=True)
    names = {tag: [of[c] for c in emoji.characters] for tag, of in emoji.names.items()}
    content = {"side": side, "characters": "".join(emoji.characters), "names": names}
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    (place / NAMES).write_text(text + "\n", encoding="utf-8")
    columns = math.isqrt(len(emoji.characters) - 1) + 1
    rows = math.ceil(len(emoji.characters) / columns)
    sheet = Image.new("RGB", (columns * side, rows * side), "white")
    for number, character in enumerate(emoji.characters):
        corner = (number % columns * side, number // columns * side)
        sheet.paste(draw(centred(character), side), corner)
    sheet.save(place / SHEET, quality=80, method=6)


def describe(config: PackageConfig, pipeline: StableDiffusionPipeline) -> dict:
    """`emoji.json`: what the model draws and how, and the resolved recipe of every stage that made it."""
    size = pipeline.vae.config.sample_size
    drawn = set(drawn_by(config))
    recipe, taken_over = recipes(config)
    revision = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    return {
        "covered": [c for c in load_emoji().characters if c in drawn],
        "languages": list(LANGUAGES),
        "defaults": {
            "steps": config.steps,
            "guidance_scale": config.guidance_scale,
            "width": size,
            "height": size,
            "scheduler": "dpm++",
        },
        "commit": revision.stdout.strip(),
        "recipe": recipe,
        **({"taken over": taken_over} if taken_over else {}),
        "figures": {},
    }


def drawn_by(config: PackageConfig) -> list[str]:
    file = config.stages / config.unet / "drawn.json"
    if config.base is not None and not file.exists():
        return bundled.card(config.base)["covered"]
    return json.loads(file.read_text(encoding="utf-8"))["covered"]


def recipes(config: PackageConfig) -> tuple[dict[str, dict], dict]:
    """The resolved recipe of every stage; and which of them are those of `base`, made at which commit."""
    before: dict = bundled.card(config.base) if config.base is not None else {"recipe": {}}
    found, gone = {}, []
    for stage in config.chain:
        file = config.stages / stage / "config.yaml"
        if stage in before["recipe"] and not file.exists():
            gone.append(stage)
            found[stage] = before["recipe"][stage]
        else:
            found[stage] = yaml.safe_load(file.read_text(encoding="utf-8"))
    return found, {"commit": before["commit"], "stages": gone} if gone else {}


def model_card(card: dict, config: PackageConfig) -> str:
    size, trained = card["defaults"]["width"], card["recipe"][config.unet]
    scenes = trained.get("scenes", {})
    together = trained.get("pairs") or scenes.get("groups")
    several = "them side by side, as well as the table below says" if together else "one of them"
    grounds = ", 10 % of the\npairs of an emoji and a ground" if scenes.get("ground_share") else ""
    languages = "\n".join(f"- {tag}" for tag in card["languages"])
    return f"""---
library_name: diffusers
pipeline_tag: text-to-image
license: apache-2.0
language:
{languages}
---

# The emoji model of altdiffusion

A small AltCLIP and AltDiffusion that draws {len(card["covered"])} emoji from their names in 18 languages,
{size}x{size} pixels, on a CPU. It is the demonstration of the package and the subject of its tests, not a
general text-to-image model: a prompt that names no emoji gives some emoji, and a prompt that names several
gives {several}.

Files: the folder opens with plain `diffusers` (`DiffusionPipeline.from_pretrained`), `altclip/` with plain
`transformers` (`AltCLIPModel.from_pretrained`). The text tower is stored in both, so that each library finds
it. `collection/` holds the emoji that the towers learnt, for the app to search: pictures, names, vectors.

## Data

Pictures: Noto Color Emoji, SIL Open Font License 1.1 (`LICENSE-font.txt`). Names and keywords: Unicode CLDR,
Unicode licence (`LICENSE-cldr.txt`). Held out by a hash: 2 % of the names of each language but English, one
template per language, 10 % of the keywords (of the UNet alone), 10 % of the pairs of emoji{grounds}.

## Recipe

`training/recipes/{config.stages.name}/train.sh`; `emoji.json` holds the resolved configuration of every stage
and the commit. What it lists under `taken over` was trained for the model before, at the commit given there.

<!-- pictures -->
<!-- /pictures -->

<!-- figures -->
<!-- /figures -->
"""


def main() -> None:
    config = parse(PackageConfig)
    try:
        package(config)
    except (ValueError, FileNotFoundError) as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
