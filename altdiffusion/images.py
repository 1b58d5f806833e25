"""Pictures in and out: opening files of unknown origin, and PNG files that say how they were made.

Opening accepts five formats, reads the header before the pixels, turns by EXIF, lays transparency on white
and scales 16 bits rather than clipping them: Pillow and transformers do none of these by themselves. Saving
writes the text that AUTOMATIC1111's web interface reads (`parameters`), the same as JSON (`altdiffusion`),
and IPTC's mark of generated media.
"""

import contextlib
import hashlib
import io
import itertools
import json
import re
import tempfile
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from PIL import ExifTags, Image, ImageOps, PngImagePlugin

from altdiffusion import aside
from altdiffusion.requests import BadRequest, Provenance, clean_text, shorten

#: By format. Up to here a picture is opened in less than a second and 300 MB: PNG is unpacked slowest, WebP's
#: decoder holds a picture four times, and a JPEG is read at half its sides from `HALVED_FROM` on. One with
#: transparency takes longest of all, and is held twice on its way to RGB.
MAX_PIXELS = {"PNG": 25_000_000, "JPEG": 50_000_000, "WEBP": 17_000_000, "GIF": 34_000_000, "BMP": 34_000_000}
MAX_TRANSPARENT = 17_000_000
HALVED_FROM = 24_000_000
MAX_SIDE = 20_000
MAX_BYTES = 200_000_000

#: Our schedulers as AUTOMATIC1111's web interface writes them.
_SAMPLERS = {
    "ddim": "DDIM",
    "deis": "DEIS",
    "dpm++": "DPM++ 2M",
    "dpm++-sde": "DPM++ 2M SDE",
    "dpm2": "DPM2",
    "dpm2-a": "DPM2 a",
    "euler": "Euler",
    "euler-a": "Euler a",
    "heun": "Heun",
    "pndm": "PLMS",
    "unipc": "UniPC",
}

_XMP = """<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">\
<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" \
Iptc4xmpExt:DigitalSourceType="http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"/>\
</rdf:RDF></x:xmpmeta>"""


class ImageError(ValueError):
    """A picture that cannot be used: names the file and the cause."""


def open_image(source: str | Path | bytes | io.BufferedIOBase, argument: str = "image") -> Image.Image:
    """RGB, upright, transparency on white. Refuses other formats, damage, and sizes meant to do harm.

    A JPEG of over 24 million pixels is read at half its width and height, in a quarter of the memory.
    """
    name, image = _header(*_read(source, argument), tuple(MAX_PIXELS), argument)
    return upright_rgb(image, f"{argument}: {name}")


def _read(source: str | Path | bytes | io.BufferedIOBase, argument: str) -> tuple[str, bytes]:
    if isinstance(source, bytes):
        return f"picture of {len(source):,} bytes", _bounded("picture", io.BytesIO(source), argument)
    if not isinstance(source, str | Path):
        return "picture", _bounded("picture", source, argument)
    name = shorten(str(source))
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(source)):
        raise ImageError(f"{argument}: {name} is an address; allowed a picture file on this machine")
    try:
        path = Path(source)
        if not path.is_file():  # also keeps pipes and devices from being read for ever
            raise ImageError(
                f"{argument}: {name} is not a file" if path.exists() else f"{argument}: no file {name}"
            )
        with path.open("rb") as file:
            return name, _bounded(name, file, argument)
    except ImageError:
        raise
    except (OSError, ValueError) as error:
        raise ImageError(
            f"{argument}: {name} cannot be read ({getattr(error, 'strerror', None) or error})"
        ) from error


def _bounded(name: str, file: io.BufferedIOBase, argument: str) -> bytes:
    data = file.read(MAX_BYTES + 1)
    if not data:
        raise ImageError(f"{argument}: {name} is empty")
    if len(data) > MAX_BYTES:
        raise ImageError(f"{argument}: {name} has over {MAX_BYTES // 10**6} MB; allowed at most that")
    return data


def _header(name: str, data: bytes, formats: tuple[str, ...], argument: str) -> tuple[str, Image.Image]:
    try:
        image = Image.open(io.BytesIO(data), formats=formats)
        transparent = image.has_transparency_data  # an assertion for a palette that is not there
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageError(
            f"{argument}: {name} has too many pixels; allowed {_millions(max(MAX_PIXELS.values()))}"
        ) from None
    except Exception as error:  # as above
        raise ImageError(f"{argument}: {name} is not a picture; allowed {', '.join(formats)}") from error
    kind = "JPEG" if image.format == "MPO" else image.format or ""  # a JPEG that brings its preview
    (width, height), most = image.size, MAX_PIXELS[kind]
    if transparent:
        kind, most = f"{kind} with transparency", min(most, MAX_TRANSPARENT)
    if width * height > most or max(width, height) > MAX_SIDE or min(width, height) < 1:
        raise ImageError(
            f"{argument}: {name} is {width} x {height}; allowed in a {kind} {_millions(most)}, "
            f"sides from 1 to {MAX_SIDE:,}"
        )
    if width * height > HALVED_FROM:
        image.draft(None, (width // 2, height // 2))  # does nothing in other formats
    return name, image


def _millions(pixels: int) -> str:
    return f"{pixels // 10**6} million pixels"


def upright_rgb(image: Image.Image, name: str = "image: a picture") -> Image.Image:
    """Turned by EXIF, transparency on white; the picture itself where nothing is to be done.

    Damage is met only now, and told of the picture as `name`.
    """
    with _damage_told(name):
        image = _turned(image)
        return image if image.mode == "RGB" and not image.has_transparency_data else _rgb(image)


def upright_mask(image: Image.Image, name: str = "mask: it") -> Image.Image:
    """The same in grey; what lies under transparency counts, which editors leave black where none drew."""
    with _damage_told(name):
        return _turned(image).convert("L")


@contextlib.contextmanager
def _damage_told(name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # Pillow's decoders raise a dozen kinds on damaged files
        raise ImageError(f"{name} is damaged ({shorten(str(error))})") from error


def _turned(image: Image.Image) -> Image.Image:
    image.load()
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)
    return image


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _of_16_bits(image).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    if image.mode != "RGBA":  # converting would copy it
        image = image.convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    for top, strip in _strips(image):
        white.paste(strip, (0, top), strip)
    return white


def _of_16_bits(image: Image.Image) -> Image.Image:
    """Scaled to 8 bits."""
    scaled = Image.new("L", image.size)
    for top, strip in _strips(image):
        scaled.paste(strip.convert("I").point(lambda value: value * (1 / 257)).convert("L"), (0, top))
    return scaled


def _strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """Its rows, some at a time, so that what lies between one mode and another takes little memory."""
    for top in range(0, image.height, 256):
        yield top, image.crop((0, top, image.width, min(top + 256, image.height)))


def pixels_digest(image: Image.Image) -> str:
    """SHA-256 of a picture that has no file, or whose file is of no matter."""
    return hashlib.sha256(f"{image.mode} {image.size}".encode() + image.tobytes()).hexdigest()


def save_png(
    image: Image.Image, path: Path, provenance: Provenance | None = None, overwrite: bool = False
) -> None:
    """Writes a PNG aside and then gives it its name, so that nobody meets half a file.

    An existing file raises FileExistsError and stays as it is, unless `overwrite`.
    """
    path = Path(path)
    with aside.file(path, overwrite=overwrite, durable=False) as place, place.open("xb") as file:
        write_png(image, file, provenance)


def write_png(image: Image.Image, file: IO[bytes], provenance: Provenance | None = None) -> None:
    """To a file that is open, or a buffer."""
    image.save(file, "PNG", pnginfo=_chunks(provenance))


def save_numbered(image: Image.Image, path: Path, provenance: Provenance | None = None) -> Path:
    """As `save_png`, but where the name is taken uses `name-2.png`, `name-3.png`, … Returns the path used."""
    path = Path(path)
    others = (path.with_name(f"{path.stem}-{number}{path.suffix}") for number in range(2, 100_000))
    for candidate in itertools.chain([path], others):
        if candidate.exists():  # to encode the picture takes longer than to ask
            continue
        with contextlib.suppress(FileExistsError):
            save_png(image, candidate, provenance)
            return candidate
    raise ImageError(
        f"output: {shorten(str(path))} and its numbered sisters are all taken; allowed another name"
    )


def file_stem(prompt: str, limit: int = 100) -> str:
    """A file name from a prompt in any script: letters, marks, digits and emoji; the rest becomes hyphens.

    Cut to `limit` bytes of UTF-8 (file systems allow 255 for the whole name), never inside a character with
    its marks.
    """
    text = "".join(c if _stays(c) else "-" for c in unicodedata.normalize("NFC", prompt))
    clusters: list[str] = []
    for character in re.sub("-+", "-", text).strip("-"):
        joined = unicodedata.category(character) in ("Mn", "Mc", "Me", "Cf", "Sk")
        if clusters and (joined or clusters[-1].endswith("\u200d")):
            clusters[-1] += character
        else:
            clusters.append(character)
    sizes = itertools.accumulate(len(cluster.encode()) for cluster in clusters)
    stem = "".join(cluster for cluster, size in zip(clusters, sizes, strict=True) if size <= limit)
    return stem.strip("-\u200c\u200d") or "picture"


def _stays(character: str) -> bool:
    kind = unicodedata.category(character)
    joiner = (
        character in "\u200c\u200d" or "\U000e0020" <= character <= "\U000e007f"
    )  # the latter: flags of regions
    return kind[0] in "LMN" or kind == "So" or "\U0001f3fb" <= character <= "\U0001f3ff" or joiner


def _chunks(provenance: Provenance | None) -> PngImagePlugin.PngInfo:
    chunks = PngImagePlugin.PngInfo()
    if provenance is not None:
        chunks.add_itxt("parameters", parameters_text(provenance))
        chunks.add_itxt("altdiffusion", provenance.to_json())
    chunks.add_itxt("XML:com.adobe.xmp", _XMP)
    return chunks


def parameters_text(made: Provenance) -> str:
    """The `parameters` text of AUTOMATIC1111's web interface, which most galleries and tools read."""
    settings = {
        "Steps": made.steps,
        "Sampler": _SAMPLERS.get(made.scheduler or "", made.scheduler),
        "CFG scale": made.guidance_scale,
        "Seed": made.seed,
        "Size": f"{made.width}x{made.height}" if made.width and made.height else None,
        "Model hash": made.fingerprint and made.fingerprint[:10],
        "Model": made.model and json.dumps(made.model, ensure_ascii=False),
        "Denoising strength": made.strength,
        "Clip skip": made.clip_skip and made.clip_skip + 1,  # theirs counts from the last layer, as 1
        "Version": made.versions.get("altdiffusion") and f"altdiffusion {made.versions['altdiffusion']}",
    }
    lines = [made.prompt]
    if made.negative_prompt:
        lines.append(f"Negative prompt: {made.negative_prompt}")
    lines.append(", ".join(f"{name}: {value}" for name, value in settings.items() if value is not None))
    return "\n".join(lines)


def read_provenance(path: str | Path | bytes, argument: str = "picture") -> Provenance:
    """How a PNG was made: from our own note, else from AUTOMATIC1111's as far as that goes."""
    name, data = _read(path, argument)
    _, image = _header(name, data, ("PNG",), argument)
    try:
        texts = {key: str(value) for key, value in getattr(image, "text", {}).items()}
    except Exception as error:  # as in upright_rgb
        raise ImageError(f"{argument}: {name} is damaged ({shorten(str(error))})") from error
    try:
        if "altdiffusion" in texts:
            return Provenance.from_json(texts["altdiffusion"])
        if "parameters" in texts:
            return parse_parameters(texts["parameters"])
    except BadRequest as error:
        raise ImageError(f"{argument}: the note in {name} cannot be used ({error})") from error
    raise ImageError(f"{argument}: {name} does not say how it was made")


def parse_parameters(text: str) -> Provenance:
    """The inverse of `parameters_text`; settings that we do not have are left out."""
    lines = text.strip().split("\n")
    pairs = re.findall(r'\s*(\w[\w \-/]*):\s*("(?:\\.|[^"\\])*"|[^,]*)(?:,|$)', lines[-1])
    settings = dict(pairs) if len(pairs) > 1 or lines[-1].startswith("Steps:") else {}
    prompt, _, negative = "\n".join(lines[:-1] if settings else lines).partition("Negative prompt: ")
    size = re.fullmatch(r"(\d{1,5})x(\d{1,5})", settings.get("Size", ""), re.ASCII)
    skip = _number(int, settings.get("Clip skip"))
    samplers = {label.lower(): name for name, label in _SAMPLERS.items()}
    return Provenance(
        prompt=clean_text(prompt),
        negative_prompt=clean_text(negative, "negative_prompt"),
        seed=_number(int, settings.get("Seed")),
        steps=_number(int, settings.get("Steps")),
        scheduler=samplers.get(settings.get("Sampler", "").lower()),
        guidance_scale=_number(float, settings.get("CFG scale")),
        width=size and int(size[1]),
        height=size and int(size[2]),
        strength=_number(float, settings.get("Denoising strength")),
        clip_skip=skip - 1 if skip and 1 < skip <= 48 else None,
        model=clean_text(settings.get("Model", "").strip('"'), "model") or None,
        fingerprint=clean_text(settings.get("Model hash", ""), "fingerprint") or None,
    )


def _number(kind: type, text: str | None):
    try:
        return kind(text) if text and len(text) < 40 else None
    except ValueError:
        return None


def destination(output: str, argument: str = "output") -> tuple[Path, Path | None]:
    """(folder, file or None) for pictures to come; refuses now what could not be written later."""
    name = shorten(output)
    if not output or "\0" in output:
        raise BadRequest(f"{argument}: {name} is no name; allowed a folder that exists, or a name in .png")
    try:
        path = Path(output)
        is_folder = path.is_dir()
        if not is_folder and path.suffix.lower() != ".png":
            raise BadRequest(
                f"{argument}: {name} is no folder; allowed a folder that exists, or a name in .png"
            )
        folder = path if is_folder else path.parent
        if not folder.is_dir():
            raise BadRequest(f"{argument}: {name} is in a folder that does not exist; allowed one that does")
        path.exists()  # a name too long for the file system is an error here
        with tempfile.TemporaryFile(dir=folder):
            return folder, None if is_folder else path
    except OSError as error:
        raise BadRequest(f"{argument}: {name} cannot be written to ({error.strerror or error})") from None
