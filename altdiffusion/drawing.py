"""What `altdiffusion generate` does: from flags and files to requests, and from pictures to files."""

import hashlib
import json
import sys
import warnings
from collections.abc import Container, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from altdiffusion import additions
from altdiffusion.images import (
    destination,
    file_stem,
    open_image,
    pixels_digest,
    read_provenance,
    save_numbered,
)
from altdiffusion.languages import language
from altdiffusion.requests import (
    BadRequest,
    GenerateRequest,
    Provenance,
    parse_size,
    prompts_by_language,
    shorten,
)
from altdiffusion.starting import collector_paused
from altdiffusion.terminal import note, progress, say

if TYPE_CHECKING:
    from altdiffusion.generation import Picture

_MAX_READ = 1_000_000  # characters of a prompt or prompt file: all that could pass, and no more


def draw(
    prompt: Sequence[str],
    flags: dict[str, str | None],
    *,
    output: str = ".",
    model: str | None = None,
    loading: dict[str, Any] | None = None,
    tiles: bool = False,
    size: str | None = None,
    repeat: str | None = None,
    languages: str | None = None,
    prompt_file: str | None = None,
    as_json: bool = False,
    loras: Sequence[str] = (),
    embeddings: Sequence[str] = (),
) -> None:
    """Checks all that can be, then loads the model, draws and saves. `flags` are fields of a request.

    `loading` is for `AltDiffusionPipeline.from_pretrained`: `runtime` and `dtype`.
    """
    image = flags.get("image")
    if image is not None:
        open_image(image)
    made = None if repeat is None else _made(repeat, image)
    given = {name: text for name, text in flags.items() if text is not None}
    fields = ({"preset": "default"} if made is None else _fields(made, image, given)) | given
    if size is not None:
        fields |= dict(zip(("width", "height"), map(str, parse_size(size)), strict=True))
    grid = prompt_file is not None or languages is not None
    if grid:
        requests = _in_languages(prompt, languages, prompt_file, fields)
    else:
        requests = [GenerateRequest.from_text(**_with_prompt(prompt, fields)).with_seed()]
    for request in requests:
        request.check_strength(request.image is not None)
    folder, file = destination(output)
    added = [
        additions.repeated(additions.chosen(texts, argument), additions.of(made, argument), argument)
        for argument, texts in (("lora", loras), ("embedding", embeddings))
    ]
    loading = loading or {}
    if loading.get("runtime") == "openvino" and any(added):
        raise BadRequest("runtime: 'openvino' takes no --lora and no --embedding; allowed with them: torch")
    pictures = _drawn(_model_of(made, model), requests, made, added, loading, tiles)
    _save(pictures, folder, file, grid=grid, as_json=as_json)


def _made(picture: str, image: str | None) -> Provenance:
    made = read_provenance(picture, "from")
    if made.mask:
        raise BadRequest(f"from: {shorten(picture)} was drawn into a masked picture; allowed in the app only")
    if made.image and image is None:
        raise BadRequest(f"from: {shorten(picture)} was drawn from another picture; give that with --image")
    if made.image and image and made.image not in _digests(image):
        warnings.warn(f"image: {shorten(image)} is not what that picture was drawn from", stacklevel=2)
    return made


def _digests(image: str) -> set[str]:
    """Of the file, and of its pixels: pictures come to the app without their files."""
    return {hashlib.sha256(Path(image).read_bytes()).hexdigest(), pixels_digest(open_image(image))}


def _fields(made: Provenance, image: str | None, flags: Container[str]) -> dict[str, str]:
    """What a picture was made with, as texts, so that flags can be laid over it.

    A scheduler that has only its class's name is the model's own, which is what none asks for.
    """
    left_out = {"image", "model", "fingerprint", "loras", "embeddings", "versions"}
    left_out |= {"strength"} if image is None else set()
    left_out |= {"scheduler"} if (made.scheduler or "").endswith("Scheduler") else set()  # a class
    left_out |= {"steps", "scheduler"} if "preset" in flags else set()  # which are the preset's
    return {name: str(value) for name, value in made.to_dict().items() if name not in left_out}


def _model_of(made: Provenance | None, model: str | None) -> str | None:
    if model is not None or made is None or made.model in (None, "bundled"):
        return model
    if "/" not in made.model and not Path(made.model).exists():
        raise BadRequest(
            f"from: made with the model {shorten(made.model)}; give its folder or file with --model"
        )
    return made.model


def _with_prompt(words: Sequence[str], fields: dict[str, str]) -> dict[str, str]:
    """A prompt from the command line, else the repeated picture's, else from a pipe."""
    if tuple(words) == ("-",) or (not words and "prompt" not in fields and not sys.stdin.isatty()):
        text = sys.stdin.read(_MAX_READ)
        if not words and not text.strip():
            raise BadRequest("prompt: nothing given; allowed words, `-` for stdin, or --from PICTURE")
        return fields | {"prompt": text}
    if words:
        return fields | {"prompt": " ".join(words)}
    if "prompt" not in fields:
        raise BadRequest("prompt: nothing given; allowed words, `-` for stdin, or --from PICTURE")
    return fields


def _in_languages(
    words: Sequence[str], languages: str | None, file: str | None, fields: dict[str, str]
) -> list[GenerateRequest]:
    """One request for each language and prompt, all with one seed."""
    if file is None:
        raise BadRequest(f"languages: {shorten(languages)} needs --prompt-file with lines of `tag: prompt`")
    if words:
        raise BadRequest(f"prompt: {shorten(' '.join(words))} beside --prompt-file; allowed one of them")
    tags = languages and list(dict.fromkeys(language(tag, "languages").tag for tag in languages.split(",")))
    prompts = prompts_by_language(_read_text(file))
    missing = [tag for tag in tags or [] if tag not in prompts]
    if missing:
        raise BadRequest(f"prompt_file: {shorten(file)} has no line for {', '.join(missing)}")
    seed = str(GenerateRequest.from_text(**{**fields, "prompt": ""}).with_seed().seed)
    return [
        GenerateRequest.from_text(**{**fields, "seed": seed, "prompt": prompt, "language": tag})
        for tag in tags or prompts
        for prompt in prompts[tag]
    ]


def _read_text(file: str) -> str:
    try:
        if file == "-":
            return sys.stdin.read(_MAX_READ)
        with Path(file).open(encoding="utf-8") as stream:
            return stream.read(_MAX_READ)
    except OSError as error:
        raise BadRequest(f"prompt_file: {shorten(file)} cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise BadRequest(f"prompt_file: {shorten(file)} is not UTF-8 text") from None


def _drawn(
    model: str | None,
    requests: Sequence[GenerateRequest],
    made: Provenance | None,
    added: Sequence[Sequence[additions.Chosen]],
    loading: dict[str, Any],
    tiles: bool,
) -> Iterator["Picture"]:
    from altdiffusion.checkpoints import resolve

    resolve(model)  # refuses a bad folder before torch is imported
    with collector_paused():
        from altdiffusion.generation import generate
        from altdiffusion.pipelines import AltDiffusionPipeline
        from altdiffusion.runtime import limit_threads

        pipeline = AltDiffusionPipeline.from_pretrained(model, **loading)
    if pipeline.runtime == "torch":
        limit_threads(pipeline.unet)
    additions.load(pipeline, *added)
    if tiles:
        pipeline.vae.enable_tiling()
    if made and made.fingerprint and not pipeline.fingerprint.startswith(made.fingerprint):
        warnings.warn(
            "from: the picture was made by a model with other weights; this one will differ", stacklevel=2
        )
    with progress(len(requests)) as part:
        for number, request in enumerate(requests):
            yield from generate(pipeline, request, part(number))


def _save(
    pictures: Iterable["Picture"], folder: Path, file: Path | None, *, grid: bool, as_json: bool
) -> None:
    """Saves the pictures of each request as soon as they are there, and says where."""
    from altdiffusion.grids import labelled_grid

    rows: dict[str, list[Any]] = {}
    saved: list[dict[str, Any]] = []
    for picture in pictures:
        made = picture.provenance
        prefix = f"{made.language}-" if grid else ""
        name = f"{prefix}{file_stem(made.prompt)}-{made.seed}.png"
        if file is not None:
            name = f"{file.stem}-{made.language}{file.suffix}" if grid else file.name
        path = _save_one(picture.image, folder / name, made)
        rows.setdefault(made.language or "", []).append(picture.image)
        saved.append({"path": str(path), **made.to_dict()})
        if picture.flagged:
            note(f"{path}: the model's safety checker objects to this picture")
        if not as_json:
            say(str(path))
            note(f"seed {made.seed}")
    document: dict[str, Any] = {"pictures": saved}
    if grid:
        target = folder / (file.name if file else f"grid-{saved[0]['seed']}.png")
        path = _save_one(labelled_grid([(language(tag), row) for tag, row in rows.items()]), target, None)
        document["grid"] = str(path)
        if not as_json:
            say(str(path))
    if as_json:
        say(json.dumps(document, ensure_ascii=False))


def _save_one(image: Any, path: Path, made: Provenance | None) -> Path:
    try:
        return save_numbered(image, path, made)
    except OSError as error:  # the disk is full, or the folder went away meanwhile
        raise BadRequest(f"output: {shorten(str(path))} was not saved ({error.strerror or error})") from error
