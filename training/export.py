"""What a stage leaves beside the weights: a model card, and a copy on the Hub where one is asked for.

The card says what the model was made from, on which data, for which languages, how well it does, and under
which licence it stands.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import HfApi, ModelCard, ModelCardData
from huggingface_hub.utils import validate_repo_id

from altdiffusion import aside, bundled, cards
from altdiffusion.languages import LANGUAGES
from altdiffusion.reading import one_line
from training.loop import StageConfig

if TYPE_CHECKING:
    from training.opened import Opened

#: The data of `training.emoji`, with its licences.
EMOJI = (
    "emoji: pictures of Noto Color Emoji (SIL Open Font License 1.1), names and keywords of Unicode CLDR "
    "(Unicode licence)"
)
Figures = Mapping[str, float | Mapping[str, float]]


@dataclass(frozen=True)
class Made:
    """What the card of a stage's result says."""

    title: str
    stage: str
    """What was done, with its paper."""
    library: str
    """Whose `from_pretrained` opens it: diffusers or transformers."""
    task: str | None
    """The Hub's name of what it does."""
    bases: Mapping[str, str | Path | None]
    """What it was made from, by role; None is left out."""
    data: str
    languages: Sequence[str]
    """Empty where the data do not say."""
    figures: Figures = field(default_factory=dict)
    """By language, or by (when or what, language); other names are figures of the whole."""
    metric: str = ""
    """What the figures measure."""
    opens: str = ""
    """What opens it, where plain `library` does not."""


def data_of(opened: "Opened | None", languages: Sequence[str] = ()) -> dict[str, Any]:
    """`data` and `languages` of a card: of the data that a stage opened, or of the emoji."""
    if opened is None:
        return {"data": EMOJI, "languages": languages or tuple(LANGUAGES)}
    found = opened.report().get("texts", languages)
    return {"data": cards.name_of(opened.source), "languages": tuple(found)}


def check(config: Any) -> None:
    """Asks the Hub for the repository before hours are spent on what would fill it."""
    name = config.run.push_to_hub
    if name is None or not first_process():
        return
    allowed = "allowed: owner/name"
    try:
        validate_repo_id(name)
    except ValueError:
        raise ValueError(f"push_to_hub: {name!r:.80} is no name of a repository; {allowed}") from None
    if "/" not in name:
        raise ValueError(f"push_to_hub: {name!r:.80} names no owner; {allowed}")
    try:
        HfApi().create_repo(name, private=True, exist_ok=True)
        HfApi().auth_check(name, write=True)  # one that exists may be another's
    except Exception as error:  # of the client, of its HTTP library, of the network
        raise ValueError(
            f"push_to_hub: {name!r:.80} cannot be written ({one_line(error)}); "
            "allowed: a repository of yours, after `hf auth login`"
        ) from None


def finish(config: StageConfig, made: Made) -> None:
    """Writes the card of `output_dir/model`, and uploads the folder where `push_to_hub` names one."""
    folder = config.output_dir / "model"
    aside.write_text(folder / "README.md", str(card(config, made)))
    bundled.write_manifest(folder)
    upload(folder, config.run.push_to_hub, made.stage)


def upload(folder: Path, name: str | None, message: str) -> None:
    if name is None:
        return
    try:
        HfApi().upload_folder(repo_id=name, folder_path=folder, commit_message=message)
    except Exception as error:  # of the client, of its HTTP library, of the network
        raise ValueError(
            f"push_to_hub: {name!r:.80} did not take the model ({one_line(error)}); it lies in {folder}, and "
            f"`hf upload {name} {folder}` tries again"
        ) from None


def card(config: StageConfig, made: Made) -> ModelCard:
    bases = {role: base for role, base in made.bases.items() if base is not None}
    tags = [tag for tag in made.languages if tag in LANGUAGES or len(tag) in (2, 3)]  # or one that was added
    terms = config.run.licence or common_licence(list(bases.values()))
    named = [str(base) for base in bases.values() if on_hub(base)]
    head = ModelCardData(
        language=tags or None,
        license=terms,
        library_name=made.library,
        pipeline_tag=made.task,
        base_model=named or None,
    )
    return ModelCard(f"---\n{head.to_yaml()}\n---\n\n{body(config, made, bases, tags, terms)}")


def body(
    config: StageConfig, made: Made, bases: Mapping[str, str | Path], tags: list[str], terms: str | None
) -> str:
    run, optim = config.run, config.optim
    lines = [
        f"# {made.title}",
        "",
        f"Made by altdiffusion: {made.stage}. {made.opens or f'Plain {made.library} opens it'}.",
        "",
        *(f"- **{role[:1].upper()}{role[1:]}:** {cards.name_of(base)}" for role, base in bases.items()),
        f"- **Data:** {made.data}",
        f"- **Languages:** {named_languages(tags) or 'not stated'}",
        f"- **Training:** {run.max_train_steps} steps of {run.batch_size} samples, learning rate "
        f"{optim.learning_rate:g}, seed {run.seed}, {run.mixed_precision} mixed precision",
        "",
        *table(made),
        "## Licence",
        "",
        licence_text(terms, bases),
    ]
    return "\n".join(lines) + "\n"


def named_languages(tags: Sequence[str]) -> str:
    return ", ".join(LANGUAGES[tag].name if tag in LANGUAGES else tag for tag in tags)


def table(made: Made) -> list[str]:
    """The figures: a row for each language, a column for each time or kind; then those of the whole."""
    flat = {name: value for name, value in made.figures.items() if isinstance(value, int | float)}
    columns = {name: value for name, value in made.figures.items() if isinstance(value, Mapping)}
    by_language = {tag: value for tag, value in flat.items() if tag in LANGUAGES}
    if by_language:
        columns["figure"] = by_language
    if not columns and not flat:
        return []
    lines = ["## Figures", "", *([f"{made.metric}.", ""] if made.metric else [])]
    if columns:
        lines += [f"| language | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
        for tag in dict.fromkeys(tag for column in columns.values() for tag in column):
            cells = [f"{column[tag]:.3f}" if tag in column else "" for column in columns.values()]
            lines.append(f"| {tag} | {' | '.join(cells)} |")
        lines.append("")
    rest = [f"- {name}: {value:.4g}" for name, value in flat.items() if name not in by_language]
    return [*lines, *rest, *([""] if rest else [])]


def licence_text(terms: str | None, bases: Mapping[str, str | Path]) -> str:
    if terms is None:
        unsaid = ", ".join(cards.name_of(base) for base in bases.values()) or "its maker"
        return f"Not stated: {unsaid} said nothing, and `--run.licence` was not given."
    if terms == cards.OPENRAIL:
        return f"[CreativeML Open RAIL-M]({cards.TERMS}), with its use restrictions."
    if terms == "other":
        each = "; ".join(f"{cards.name_of(base)}: {licence_of(base)}" for base in bases.values())
        return f"What it was made from stands under several licences, and all of them hold: {each}."
    return f"{terms}."


def common_licence(bases: Sequence[str | Path]) -> str | None:
    """That of all the models that say one; "other" where they differ."""
    found = {terms for base in bases if (terms := licence_of(base))}
    return next(iter(found)) if len(found) == 1 else ("other" if found else None)


def licence_of(base: str | Path) -> str | None:
    """What the card of a model's folder says, or, of a part such as `unet/`, that of the folder around it."""
    if str(base).startswith(("BAAI/AltCLIP", "BAAI/AltDiffusion")):
        return cards.OPENRAIL
    folder = Path(base)
    return cards.licence(folder) or cards.licence(folder.parent)


def on_hub(base: str | Path) -> bool:
    return isinstance(base, str) and base.count("/") == 1 and not Path(base).exists()


def first_process() -> bool:
    """Asked before accelerate is: what it starts with cannot be changed later."""
    return os.environ.get("RANK", "0") == "0"
