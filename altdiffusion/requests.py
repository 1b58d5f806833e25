"""What a user may ask for, typed and bounded: one description for Python, the command line and the app.

`None` means "the model's own default". Every refusal is one line that starts with the argument's name, raised
before any model work: diffusers draws an unguided picture for a guidance of nan, and a picture for -1 steps.
"""

import dataclasses
import difflib
import json
import re
import reprlib
import secrets
import unicodedata
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from altdiffusion.languages import language
from altdiffusion.presets import PRESETS

MAX_PROMPT_CHARACTERS = 2000
MAX_SEED = 2**64 - 1

#: Schedulers that work with any Stable Diffusion model and need no further package, by the name people know.
SCHEDULERS: dict[str, str] = {
    "ddim": "DDIMScheduler",
    "deis": "DEISMultistepScheduler",
    "dpm++": "DPMSolverMultistepScheduler",
    "dpm++-sde": "DPMSolverMultistepScheduler",
    "dpm2": "KDPM2DiscreteScheduler",
    "dpm2-a": "KDPM2AncestralDiscreteScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler-a": "EulerAncestralDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
    "pndm": "PNDMScheduler",
    "unipc": "UniPCMultistepScheduler",
}

_BIDI = {0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)}
_DROPPED = dict.fromkeys((*range(32), *range(127, 160), *_BIDI)) | dict.fromkeys(range(9, 14), " ")


class BadRequest(ValueError):
    """One line for the person who asked: the argument's name, what was given, what is allowed."""


_SHORT = reprlib.Repr()
_SHORT.maxother = _SHORT.maxstring = _SHORT.maxlong = 100
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxset = _SHORT.maxdict = 10


def shorten(value: object, limit: int = 80) -> str:
    """A value as it may stand in a message: escaped, on one line, at most `limit` characters.

    What is left out is from the middle: the end of a path says more than its beginning.
    """
    if isinstance(value, int) and value.bit_length() > 1000:
        return (
            f"a whole number of {value.bit_length():,} bits"  # Python refuses to write out the longest ones
        )
    if isinstance(value, str) and len(value) > 2 * limit:
        value = value[:limit] + value[-limit:]  # a text of megabytes need not be escaped whole
    elif isinstance(value, bytes) and len(value) > 2 * limit:
        value = value[:limit] + value[-limit:]
    try:  # of a long list not the whole, of an array no line breaks
        plain = isinstance(value, str | bytes | int | float)
        text = repr(value) if plain else " ".join(_SHORT.repr(value).split())
    except Exception:  # what stands for a value may be broken, too
        text = f"a {type(value).__name__}"
    head = limit // 3
    return text if len(text) <= limit else f"{text[:head]}…{text[head + 1 - limit :]}"


def clean_text(text: object, argument: str = "prompt") -> str:
    """NFC, without control and direction characters; joiners and variation selectors stay, for emoji."""
    if not isinstance(text, str):
        raise BadRequest(f"{argument}: {shorten(text)} is not text; allowed {_TEXT}")
    if len(text) > MAX_PROMPT_CHARACTERS:
        raise BadRequest(f"{argument}: {shorten(text)} has {len(text):,} characters; allowed {_TEXT}")
    if "\0" in text:
        raise BadRequest(f"{argument}: {shorten(text)} has a NUL character; allowed {_TEXT}")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise BadRequest(
            f"{argument}: {shorten(text)} has half a character (a lone surrogate); allowed {_TEXT}"
        )
    cleaned = unicodedata.normalize("NFC", text.translate(_DROPPED)).strip()
    if len(cleaned) > MAX_PROMPT_CHARACTERS:  # some characters are written as several
        raise BadRequest(
            f"{argument}: {shorten(text)} has {len(cleaned):,} characters in normal form; allowed {_TEXT}"
        )
    return cleaned


_TEXT = f"text of at most {MAX_PROMPT_CHARACTERS:,} characters"


def as_list(given: Any, argument: str, one: type | tuple[type, ...], allowed: str) -> list[Any]:
    """One or several as a list; refuses what is neither, such as mappings and bytes."""
    if isinstance(given, one):
        return [given]
    if isinstance(given, Iterable) and not isinstance(given, str | bytes | Mapping):
        return list(given)
    raise BadRequest(f"{argument}: {shorten(given)} is {type(given).__name__}; allowed {allowed}")


def parse_size(size: str | int) -> tuple[int, int]:
    """`"64"` or `"64x96"` (width x height) → (64, 96)."""
    match = re.fullmatch(r"\s*(\d{1,9})(?:\s*[xX×]\s*(\d{1,9}))?\s*", str(size), re.ASCII)
    sides = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not all(8 <= side <= 2048 and side % 8 == 0 for side in sides):
        raise BadRequest(f"size: {shorten(size)}; allowed N or WIDTHxHEIGHT, {_SIDE} each")
    return sides


_SIDE = "a multiple of 8 from 8 to 2048"


def one_of(argument: str, names: Collection[str], name: str) -> str:
    """The one of `names` that was given, in whatever case."""
    known = name.strip().lower() if isinstance(name, str) else ""
    if known in names:
        return known
    near = difflib.get_close_matches(known[:40], names, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'? " if near else ""
    raise BadRequest(f"{argument}: {shorten(name)} is not known; {hint}allowed {', '.join(names)}")


def unknown_argument(name: str, known: Iterable[str]) -> str:
    """What to say of an argument that is none."""
    near = difflib.get_close_matches(name[:40], known := list(known), n=1)
    hint = f"did you mean '{near[0]}'? " if near else ""
    return f"{shorten(name)[1:-1]}: not an argument; {hint}allowed {', '.join(known)}"


def _image(path: str) -> str:
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:", path):
        raise BadRequest(f"image: {shorten(path)} is an address; allowed a picture file on this machine")
    return path


def _whole(low: int, high: int) -> Any:
    return Field(ge=low, le=high, description=f"a whole number from {low} to {high}")


Side = Annotated[int | None, Field(ge=8, le=2048, multiple_of=8, description=_SIDE)]


class GenerateRequest(BaseModel):
    """One picture, or `count` of them: picture i has the seed `seed + i`, so each can be repeated alone."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    prompt: Annotated[str, BeforeValidator(clean_text), Field(description=_TEXT)]
    negative_prompt: Annotated[
        str, BeforeValidator(lambda text: clean_text(text, "negative_prompt")), Field(description=_TEXT)
    ] = ""
    seed: Annotated[int, _whole(-1, MAX_SEED)] = -1
    """-1 draws one at random."""
    preset: Annotated[
        Annotated[str, AfterValidator(partial(one_of, "preset", PRESETS))] | None,
        Field(description=", ".join(PRESETS)),
    ] = None
    """A named way to draw (altdiffusion.presets): what this request says itself comes first."""
    steps: Annotated[int | None, _whole(1, 1000)] = None
    guidance_scale: Annotated[
        float | None, Field(ge=0, le=50, allow_inf_nan=False, description="a number from 0 to 50")
    ] = None
    width: Side = None
    height: Side = None
    count: Annotated[int, _whole(1, 64)] = 1
    scheduler: Annotated[
        Annotated[str, AfterValidator(partial(one_of, "scheduler", SCHEDULERS))] | None,
        Field(description=", ".join(SCHEDULERS)),
    ] = None
    image: Annotated[
        Annotated[str, AfterValidator(_image)] | None, Field(description="the path of a picture")
    ] = None
    """Path of the picture to start from (image-to-image)."""
    strength: Annotated[
        float, Field(gt=0, le=1, allow_inf_nan=False, description="a number above 0, at most 1")
    ] = 0.8
    """How far to go from `image`; 1 ignores it."""
    clip_skip: Annotated[int | None, _whole(0, 47)] = None
    """Last layers of the text tower to leave out: what A1111 calls `Clip skip`, less one."""
    weighting: Annotated[bool | None, Field(description="true or false")] = None
    """Whether `(red:1.3)` and `red++` in prompts are weights (altdiffusion.prompts) or words."""
    mix: Annotated[
        Annotated[str, BeforeValidator(lambda text: text and clean_text(text, "mix"))] | None,
        Field(description=_TEXT),
    ] = None
    """A second prompt, perhaps in another language: what is drawn lies on the line between the two."""
    mix_share: Annotated[
        float, Field(ge=0, le=1, allow_inf_nan=False, description="a number from 0 to 1")
    ] = 0.5
    """How far from `prompt` to `mix`."""
    language: Annotated[
        Annotated[str, AfterValidator(lambda tag: language(tag).tag)] | None,
        Field(description="a language tag"),
    ] = None

    @model_validator(mode="after")
    def _share_needs_mix(self) -> "GenerateRequest":
        if "mix_share" in self.model_fields_set and self.mix is None:
            raise BadRequest(f"mix_share: {self.mix_share} is for two prompts; give mix as well")
        return self

    @property
    def texts(self) -> dict[str, str]:
        """What the text tower is to read, by the argument's name."""
        texts = {"prompt": self.prompt, "negative_prompt": self.negative_prompt, "mix": self.mix}
        return {name: text for name, text in texts.items() if text}

    def check_strength(self, picture: bool) -> None:
        """Refuses a strength where no picture is given, which may come apart from the request."""
        if "strength" in self.model_fields_set and not picture:
            raise BadRequest(f"strength: {self.strength} is for image-to-image; give image as well")

    @classmethod
    def build(cls, **fields: Any) -> "GenerateRequest":
        """As the constructor, but every refusal is a one-line `BadRequest`."""
        return _one_line(cls, lambda: cls.model_validate(fields))

    @classmethod
    def from_text(cls, **fields: str) -> "GenerateRequest":
        """The same from texts, as a command line has them: `steps="20"`."""
        return _one_line(cls, lambda: cls.model_validate_strings(fields))

    def with_seed(self) -> "GenerateRequest":
        """This request with its seed drawn, where it was -1.

        32 bits: torch's CPU generator takes no more of a seed, and people copy these numbers by hand.
        """
        return self if self.seed >= 0 else self.model_copy(update={"seed": secrets.randbelow(2**32)})


def _one_line(cls: type[BaseModel], make: Any) -> Any:
    try:
        return make()
    except ValidationError as error:
        raise BadRequest(_describe(cls, error)) from None


def _describe(cls: type[BaseModel], error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    name = str(first["loc"][0]) if first["loc"] else ""
    if first["type"] == "value_error" and "ctx" in first:
        return str(first["ctx"]["error"])
    if first["type"] == "extra_forbidden":
        return unknown_argument(name, cls.model_fields)
    given = "missing" if first["type"] == "missing" else shorten(first["input"])
    return f"{name}: {given}; allowed {cls.model_fields[name].description}"


@dataclass(frozen=True)
class Addition:
    """A LoRA or learned words that were laid over the model: the file's name, its SHA-256, its strength."""

    name: str
    digest: str
    scale: float = 1.0


@dataclass(frozen=True)
class Provenance:
    """How a picture was made: with the same model on the same machine, enough to draw it again."""

    prompt: str
    negative_prompt: str = ""
    seed: int | None = None
    preset: str | None = None
    steps: int | None = None
    scheduler: str | None = None
    guidance_scale: float | None = None
    width: int | None = None
    height: int | None = None
    strength: float | None = None
    image: str | None = None
    """SHA-256 of the picture that it started from; its path would tell about someone's disk. Of the file, or
    of the pixels where it came without one."""
    mask: str | None = None
    """SHA-256 of the mask of what was to be drawn, as of `image`."""
    clip_skip: int | None = None
    weighting: bool | None = None
    mix: str | None = None
    mix_share: float | None = None
    language: str | None = None
    model: str | None = None
    """`bundled`, a hub name, or the last part of a folder's name."""
    fingerprint: str | None = None
    loras: tuple[Addition, ...] = ()
    embeddings: tuple[Addition, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), ensure_ascii=False)

    def to_dict(self) -> dict[str, Any]:
        """Without the fields that say nothing."""
        return {
            name: value for name, value in dataclasses.asdict(self).items() if value not in (None, {}, ())
        }

    @classmethod
    def from_json(cls, text: str | bytes) -> "Provenance":
        """Reads `to_json`; as the text may come from anybody's file, every field is checked and cleaned."""
        try:
            found = TypeAdapter(cls).validate_json(text, strict=True)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            name = ".".join(map(str, first["loc"])) or "provenance"
            raise BadRequest(f"{name[:80]}: {shorten(first['input'])}: {first['msg']}") from None
        values = {name: getattr(found, name) for name in cls.__dataclass_fields__}
        for name, value in values.items():
            if isinstance(value, str):
                values[name] = clean_text(value, name)
        for name in ("loras", "embeddings"):
            values[name] = tuple(
                Addition(clean_text(one.name, name), clean_text(one.digest, name), one.scale)
                for one in values[name]
            )
        values["versions"] = {
            clean_text(key, "versions"): clean_text(value, "versions")
            for key, value in found.versions.items()
        }
        return cls(**values)


def prompts_by_language(text: str, argument: str = "prompt_file") -> dict[str, list[str]]:
    """Reads lines of `tag: prompt`; empty lines and those that start with `#` are left out."""
    prompts: dict[str, list[str]] = {}
    for number, line in enumerate(text.removeprefix("\ufeff").splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        tag, colon, prompt = line.partition(":")
        where = f"{argument}: line {number}"
        if not colon:
            raise BadRequest(f"{where}: {shorten(line)} has no colon; allowed lines of `tag: prompt`")
        prompts.setdefault(language(tag, where).tag, []).append(clean_text(prompt, where))
    if not prompts:
        raise BadRequest(f"{argument}: no prompt in it; allowed lines of `tag: prompt`")
    return prompts
