"""Model cards: what a converted model was made from, its languages, and its weights' terms."""

import os
import re
from pathlib import Path
from typing import Any

from altdiffusion.languages import LANGUAGES

#: Licence of every published AltCLIP and AltDiffusion.
OPENRAIL = "creativeml-openrail-m"
TERMS = "https://huggingface.co/spaces/CompVis/stable-diffusion-license"
_PAPERS = {
    "AltCLIP": "https://arxiv.org/abs/2211.06679",
    "AltDiffusion": "https://arxiv.org/abs/2308.09991",
}

_CARD = """---
license: {licence}
library_name: {library}
pipeline_tag: {task}
{base_yaml}
{language_yaml}
---

# {title}

Converted by altdiffusion to stock classes of {library}: {opens}

- **Base model:** {base}.
- **Converted from:** {source}.
- **Changes:** {changes}
- **Languages:** {languages}.
- **Paper:** {paper}

## Licence

The weights stay under the [CreativeML Open RAIL-M licence]({terms}). In short: they may be used, changed,
passed on and sold, if

- whoever gets them, or a model made from them, gets a copy of the licence and is bound by its use
  restrictions (its Attachment A: nothing unlawful, no harm to minors, no harassment, no false information
  meant to harm, no medical advice, no automated decisions about people's rights, no discrimination);
- changed files say that they were changed;
- notices of authorship stay.

What the model makes belongs to whoever makes it, who also answers for it. The licence itself decides, not
this summary.
"""
#: What was done to the weights: by a conversion, and by saving a model that was loaded for use.
CONVERTED = (
    "names and layout only; no value of a tensor was changed. The generation tower keeps the last layer's "
    "norm in `pre_LN`, or goes without the last layer; what is left over is in `published.safetensors`."
)
SAVED = "loaded as stock classes and saved again, perhaps in another precision or after training."


def published_model(form: str, name: str = "", text_config: dict[str, Any] | None = None) -> str | None:
    """`m2`, `m9` or `m18`; None for a model of one's own, and where m2 and m9 cannot be told apart.

    Their tensors have the same shapes. What tells them apart is the name, and AltCLIP's published config:
    dropout is 0.1 in m2's and 0.0 in m9's.
    """
    if form != "m9":
        return form if form == "m18" else None
    if found := re.search(r"m(9|2)(?![0-9a-z])", name.lower()):
        return found[0]
    dropout = (text_config or {}).get("hidden_dropout_prob")
    return {0.0: "m9", 0.1: "m2"}.get(dropout) if dropout is not None else None


def languages(form: str, model: str | None) -> list[str]:
    """Tags that the model covers; of two models that look the same, those that both cover."""
    if form == "own":
        return []
    return [row.tag for row in LANGUAGES.values() if (model or "m2") in row.models]


def base_models(form: str, model: str | None, *, draws: bool) -> list[str]:
    family = "BAAI/AltDiffusion" if draws else "BAAI/AltCLIP"
    published = {"m2": [family], "m9": [f"{family}-m9"], "m18": [f"{family}-m18"]}
    return published[model] if model else ([] if form == "own" else [family, f"{family}-m9"])


def name_of(source: str | os.PathLike) -> str:
    """A hub name as it is; of a path, which is this machine's affair, the end."""
    path = Path(source).expanduser()
    return path.resolve().name if path.exists() else str(source)


def card(
    form: str,
    source: str,
    *,
    draws: bool,
    text_config: dict[str, Any] | None = None,
    changes: str = CONVERTED,
    partner: str | None = None,
) -> str:
    """The README of a model in a published `form`; `source` is a name, as `name_of` gives it.

    `partner` is the Stable Diffusion whose UNet draws with an AltCLIP's text tower.
    """
    model = published_model(form, source, text_config)
    bases, tags = base_models(form, model, draws=draws and partner is None), languages(form, model)
    joined = [" or ".join(bases), *([partner] if partner else [])]
    bases += [partner] if partner and "/" in partner else []
    names = ", ".join(LANGUAGES[tag].name for tag in tags)
    family = "AltDiffusion" if draws else "AltCLIP"
    library, opens = ("diffusers", "`DiffusionPipeline.from_pretrained` opens it.")
    if not draws:
        library, opens = ("transformers", "`AltCLIPModel.from_pretrained` opens it.")
    return _CARD.format(
        licence=OPENRAIL,
        library=library,
        task="text-to-image" if draws else "zero-shot-image-classification",
        base_yaml=_yaml("base_model", bases),
        language_yaml=_yaml("language", tags),
        title=f"{family}, stock classes" if model is None else f"{family} {model}, stock classes",
        opens=opens,
        base=" and ".join(joined) + ("" if model else ", whose files look the same"),
        source=source,
        changes=changes,
        languages=names if model else f"{names}; more if it is the model of nine languages",
        paper=_PAPERS[family],
        terms=TERMS,
    )


def licence(folder: Path) -> str | None:
    """What the folder's own card says."""
    readme = folder / "README.md"
    if readme.is_file():
        text = readme.read_text(encoding="utf-8", errors="replace")
        head = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
        if head and (found := re.search(r"^license:\s*(\S+)", head[1], re.MULTILINE)):
            return found[1]
    return None


def _yaml(key: str, values: list[str]) -> str:
    return "\n".join([f"{key}:", *(f"- {value}" for value in values)])
