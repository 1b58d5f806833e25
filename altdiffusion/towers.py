"""Text towers: the published forms and the stock `transformers.AltCLIPTextModel`, both ways and lossless.

The published models compute what conditions the UNet in two ways, and neither is the stock class's formula:

    m9 (and m2)   transformation(h_last)                        no LayerNorm before it
    m18           transformation_pre(pre_LN(h_penultimate))     a head of its own, the last layer unused
    own           the stock transformation(pre_LN(h_last))      ours, and any stock folder

The stock class takes both: an m18 tower loses its last layer; in an m9 tower the last layer's closing
LayerNorm becomes `pre_LN` and leaves 1 and 0 behind, which changes nothing but rounding. What the stock tower
does not hold is left over, and brings back every published tensor. Plain work on names and tensors.
"""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

FORMS = ("m9", "m18", "own")
#: In an AltCLIP's text configuration and in a single file's metadata: the form, where keys cannot tell.
FORM_FIELD = "conditioning_form"

#: Fields that only the published configurations have.
_LEGACY_FIELDS = {"pooler_fn", "learn_encoder", "has_pre_transformation", "direct_kd"}
#: The width of the teacher of m18 (OpenCLIP ViT-H/14).
_M18_PROJECT_DIM = 1024
#: Never part of the stock tower: unused pooling, computed buffers, and what belongs to the whole AltCLIP.
_FOREIGN = re.compile(r"roberta\.pooler\.|roberta\.embeddings\.(position|token_type)_ids$|logit_scale$")
#: The last layer's closing LayerNorm in an m9 tower: its values move to `pre_LN` and leave these behind.
_NEUTRAL = {"weight": 1, "bias": 0}


def form_of(names_and_shapes: Mapping[str, Any], config: Mapping[str, Any] | None = None) -> str:
    """How a tower, named without prefix, makes its conditioning: "m9", "m18" or "own".

    `config` is the tower's configuration; None for a file that has none, as all published single files. In
    order: `transformation_pre` is m18's; a configuration that names its form is believed; without `pre_LN`
    only m9 works; and with it a configuration decides: one in the published style is m9 (or, as wide as m18,
    a copy that lost its generation head, which leaves the stock formula), any other is a stock model.
    """
    shapes = {name: tuple(getattr(value, "shape", value)) for name, value in names_and_shapes.items()}
    config = config or {"pooler_fn": "cls"}
    if "transformation_pre.weight" in shapes:
        return "m18"
    if config.get(FORM_FIELD) is not None:
        return _checked(config[FORM_FIELD])
    if "pre_LN.weight" not in shapes:
        return "m9"
    headless = shapes.get("transformation.weight", ())[:1] == (_M18_PROJECT_DIM,)
    return "m9" if _LEGACY_FIELDS & config.keys() and not headless else "own"


def in_memory(name: str) -> str:
    """A published tensor's name in the stock class, which calls its layers `layers`."""
    return re.sub(r"\bencoder\.layer\.", "encoder.layers.", name)


def to_stock(tensors: Mapping[str, "Tensor"], form: str) -> dict[str, "Tensor"]:
    """The state of the stock generation tower. A name that no published tower has is kept, to be refused."""
    _checked(form)
    renamed = {in_memory(name): tensor for name, tensor in tensors.items()}
    last = _last_layer(renamed)
    stock = {name: tensor for name, tensor in renamed.items() if not _is_left(name, form, last)}
    if form == "m18":
        return {name.replace("transformation_pre.", "transformation."): stock[name] for name in stock}
    if form == "m9":
        for kind, neutral in _NEUTRAL.items():
            closing = f"{last}output.LayerNorm.{kind}"
            if closing in stock:  # if not, the strict reading of the model names what is missing
                stock[f"pre_LN.{kind}"] = stock[closing]
                stock[closing] = stock[closing].new_full(stock[closing].shape, neutral)
    return stock


def left_over(tensors: Mapping[str, "Tensor"], form: str) -> dict[str, "Tensor"]:
    """What `to_stock` leaves out, under its published names."""
    _checked(form)
    last = _last_layer(in_memory(name) for name in tensors)
    return {name: tensors[name] for name in tensors if _is_left(in_memory(name), form, last)}


def to_published(
    stock: Mapping[str, "Tensor"], left: Mapping[str, "Tensor"], form: str
) -> dict[str, "Tensor"]:
    """Every published tensor, bit for bit, from what `to_stock` and `left_over` gave."""
    _checked(form)
    published = dict(stock)
    if form == "m18":
        published = {name.replace("transformation.", "transformation_pre."): stock[name] for name in stock}
    elif form == "m9":
        for kind, neutral in _NEUTRAL.items():
            closing = f"{_last_layer(stock)}output.LayerNorm.{kind}"
            if not (stock[closing] == neutral).all():
                raise ValueError(
                    f"text_encoder: {closing!r} was trained after conversion; allowed in form 'm9': {neutral}"
                )
            published[closing] = published.pop(f"pre_LN.{kind}")
    on_disk = {name.replace("encoder.layers.", "encoder.layer."): published[name] for name in published}
    return on_disk | dict(left)


def stock_config(text_config: Mapping[str, Any], form: str) -> dict[str, Any]:
    """The stock tower's configuration from a published one: the fields that the class knows, no others."""
    from transformers import AltCLIPTextConfig, XLMRobertaConfig

    stock = AltCLIPTextConfig()
    # a gap in a configuration is a default of the class that wrote it
    writer = stock if text_config.get("model_type") == stock.model_type else XLMRobertaConfig()
    published = {**stock.to_dict(), **writer.to_dict(), **text_config}
    fields = {key: published[key] for key in AltCLIPTextConfig.__annotations__}
    fields["num_hidden_layers"] -= 1 if _checked(form) == "m18" else 0
    # unmasked pads count as words, and plain diffusers masks them only if the configuration says so
    return {
        **fields,
        "model_type": stock.model_type,
        "architectures": ["AltCLIPTextModel"],
        "use_attention_mask": True,
    }


def published_config(text_config: Mapping[str, Any], form: str) -> dict[str, Any]:
    """The configuration that diffusers' `RobertaSeriesModelWithTransformation` was published with."""
    layers = text_config["num_hidden_layers"] + (1 if _checked(form) == "m18" else 0)
    return {
        **text_config,
        "num_hidden_layers": layers,
        "model_type": "xlm-roberta",
        "architectures": ["RobertaSeriesModelWithTransformation"],
        "pooler_fn": "cls",
        "learn_encoder": False,
        **({"has_pre_transformation": True} if form == "m18" else {}),
    }


def shared_names(names: Mapping[str, Any], form: str) -> dict[str, str]:
    """Generation tower's name → the AltCLIP text tower's name of the same values, both as in memory.

    `names` are those of the generation tower; one that is left out has no equal in the AltCLIP.
    """
    _checked(form)
    last = _last_layer(names)
    pairs = {name: name for name in names}
    for kind in _NEUTRAL:
        if form == "m9":
            pairs[f"pre_LN.{kind}"] = pairs.pop(f"{last}output.LayerNorm.{kind}")
        elif form == "m18":
            del pairs[f"transformation.{kind}"]
    return pairs


def _checked(form: str) -> str:
    if form not in FORMS:
        raise ValueError(f"form: {form!r:.80} is none; allowed: {', '.join(FORMS)}")
    return form


def _last_layer(names: Any) -> str:
    """The prefix of a tower's last layer; one that nothing has where there are no layers."""
    found = [re.match(r"roberta\.encoder\.layers\.(\d+)\.", name) for name in names]
    number = max((int(match[1]) for match in found if match), default=-1)
    return f"roberta.encoder.layers.{number}."


def _is_left(name: str, form: str, last: str) -> bool:
    if form == "m18":
        return bool(_FOREIGN.match(name)) or name.startswith(("transformation.", last))
    return bool(_FOREIGN.match(name)) or (form == "m9" and name.startswith("pre_LN."))
