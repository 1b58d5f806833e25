"""The command line: each function is a subcommand, its docstring the help.

What takes long to import is imported inside the functions, so that `--help` is quick.
"""

import json
from collections.abc import Callable, Sequence
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional

from altdiffusion.flags import COMMANDS, Repeated
from altdiffusion.flags import OWN as _OWN
from altdiffusion.flags import Json as _Json
from altdiffusion.flags import Model as _Model
from altdiffusion.flags import Runtime as _Runtime
from altdiffusion.flags import command as _command
from altdiffusion.flags import flag as _flag
from altdiffusion.presets import PRESETS
from altdiffusion.requests import SCHEDULERS, BadRequest, shorten
from altdiffusion.terminal import run
from altdiffusion.web import app as _app


@_command
def generate(
    prompt: Positional[
        Annotated[tuple[str, ...], _flag("PROMPT", "", "Words of one prompt; `-` is stdin.")]
    ] = (),
    *,
    output: Annotated[str, _flag("PATH", "this folder", "A folder that exists, or a .png file.", "-o")] = ".",
    model: _Model = None,
    seed: Annotated[str | None, _flag("N", "-1", "Same seed, same picture; -1 draws one.")] = None,
    preset: Annotated[str | None, _flag("NAME", "default", f"One of {', '.join(PRESETS)}.")] = None,
    steps: Annotated[str | None, _flag("N", "preset's", "Steps from noise to picture.")] = None,
    guidance_scale: Annotated[str | None, _flag("F", _OWN, "How closely to follow the prompt.")] = None,
    negative_prompt: Annotated[str | None, _flag("TEXT", "none", "What not to draw.")] = None,
    count: Annotated[str | None, _flag("N", "1", "Pictures to draw; number i has seed + i.")] = None,
    size: Annotated[str | None, _flag("N|WxH", _OWN, "Pixels, multiples of 8.")] = None,
    scheduler: Annotated[str | None, _flag("NAME", "preset's", f"One of {', '.join(SCHEDULERS)}.")] = None,
    clip_skip: Annotated[str | None, _flag("N", "0", "Last layers of the text tower to leave out.")] = None,
    weighting: Annotated[bool, _flag("", "", "Read (word:1.3) and word++ as weights.")] = False,
    mix: Annotated[str | None, _flag("TEXT", "", "A second prompt, to draw what lies between.")] = None,
    mix_share: Annotated[str | None, _flag("F", "0.5", "How far to go to --mix, up to 1.")] = None,
    lora: Annotated[
        Repeated, _flag("FILE[:F]", "", "A LoRA, and its strength (1). May be given several times.")
    ] = (),
    embedding: Annotated[Repeated, _flag("FILE", "", "Learned words. May be given several times.")] = (),
    from_: Annotated[
        str | None, _flag("PICTURE", "", "Repeat it; other flags change it.", name="from")
    ] = None,
    image: Annotated[str | None, _flag("PICTURE", "", "Start from this picture.")] = None,
    strength: Annotated[str | None, _flag("F", "0.8", "How far to go from --image, up to 1.")] = None,
    languages: Annotated[
        str | None, _flag("TAG,TAG", "all in the file", "Draw a grid over languages.")
    ] = None,
    prompt_file: Annotated[str | None, _flag("FILE", "", "Its prompts: lines of `tag: prompt`.")] = None,
    runtime: _Runtime = "torch",
    dtype: Annotated[
        str | None, _flag("NAME", "float32 on a CPU", "float32, bfloat16, float16, or auto: the fastest.")
    ] = None,
    tiles: Annotated[bool, _flag("", "", "Decode in tiles: large pictures in little memory.")] = False,
    as_json: _Json = False,
) -> None:
    """Draw pictures from a prompt in any of 18 languages.

    Prints the path of each picture, and on stderr the seed. Existing files are kept: new ones get a number.
    """
    from altdiffusion.drawing import draw

    draw(
        prompt,
        {
            "seed": seed,
            "preset": preset,
            "steps": steps,
            "guidance_scale": guidance_scale,
            "negative_prompt": negative_prompt,
            "count": count,
            "scheduler": scheduler,
            "clip_skip": clip_skip,
            "image": image,
            "strength": strength,
            "weighting": "true" if weighting else None,
            "mix": mix,
            "mix_share": mix_share,
        },
        loras=lora,
        embeddings=embedding,
        output=output,
        model=model,
        loading={"runtime": runtime, "dtype": dtype},
        tiles=tiles,
        size=size,
        repeat=from_,
        languages=languages,
        prompt_file=prompt_file,
        as_json=as_json,
    )


@_command
def show(
    picture: Positional[
        Annotated[str, _flag("PICTURE", "", "A PNG drawn by altdiffusion or AUTOMATIC1111.")]
    ],
    *,
    as_json: _Json = False,
) -> None:
    """Tell how a picture was made."""
    from altdiffusion.images import read_provenance

    made = read_provenance(picture).to_dict()
    if as_json:
        print(json.dumps(made, ensure_ascii=False))
        return
    versions = made.pop("versions", {})
    for kind in ("loras", "embeddings"):
        for one in made.pop(kind, ()):
            made[f"{kind[:-1]} {one['name']}"] = f"strength {one['scale']:g}, SHA-256 {one['digest']}"
    made |= {f"{package} version": number for package, number in versions.items()}
    for name, value in made.items():
        print(f"{name.replace('_', ' ')}: {value}")


@_command
def info(
    model: Positional[
        Annotated[str | None, _flag("MODEL", "the bundled one", "A folder, a file or a hub name.")]
    ] = None,
    *,
    as_json: _Json = False,
) -> None:
    """Tell what a model is, in whatever layout it lies, and what this machine runs it with."""
    from altdiffusion.converting import describe

    describe(model, as_json=as_json)


@_command
def convert(
    source: Positional[Annotated[str, _flag("SOURCE", "", "A folder, a file or a hub name.")]],
    target: Positional[Annotated[str, _flag("FOLDER", "", "A new folder, or an empty one.")]],
    *,
    single_file: Annotated[
        bool, _flag("", "", "Write FOLDER/model.safetensors, or FOLDER if it is a name so ending.")
    ] = False,
    to: Annotated[
        Literal["A", "B", "C"] | None, _flag("A|B|C", "stock classes", "Back to a published layout.")
    ] = None,
    tokenizer: Annotated[
        str | None, _flag("FOLDER", "the source's", "The tokenizer of a file that has none beside it.")
    ] = None,
    raw: Annotated[
        bool, _flag("", "", "Of a training checkpoint, the weights that are not averaged.")
    ] = False,
    as_json: _Json = False,
) -> None:
    """Convert any published AltCLIP or AltDiffusion to what plain diffusers and transformers open.

    Nothing is lost and nothing is written before it was read again and compared. Layouts: A is transformers'
    AltCLIP folder, B the diffusers folder of AltDiffusion, C the single file of Stable Diffusion.
    """
    from altdiffusion.converting import convert

    convert(source, target, single_file=single_file, to=to, tokenizer=tokenizer, raw=raw, as_json=as_json)


@_command
def embed(
    text: Positional[
        Annotated[tuple[str, ...], _flag("TEXT", "", "Texts; none or `-` reads lines from stdin.")]
    ] = (),
    *,
    images: Annotated[tuple[str, ...], _flag("PICTURE", "", "Picture files.")] = (),
    format_: Annotated[
        Literal["jsonl", "npy", "parquet"], _flag("jsonl|npy|parquet", "jsonl", "Output form.", name="format")
    ] = "jsonl",
    output: Annotated[str | None, _flag("FILE", "stdout", "A new file; for shards a folder.", "-o")] = None,
    shards: Annotated[
        tuple[str, ...], _flag("PATH", "", "Folders, .tsv and .tar files: a file of vectors for each.")
    ] = (),
    model: _Model = None,
    runtime: _Runtime = "torch",
) -> None:
    """Turn texts and pictures into unit vectors: what is alike has a large dot product, in any language.

    With --shards, files that are there are skipped, so the same command goes on after an interruption;
    `accelerate launch -m altdiffusion embed --shards …` shares the work among processes and nodes.
    """
    from altdiffusion.embedding import embed, embed_shards

    if not shards:
        return embed(text, images, form=format_, output=output, model=model, runtime=runtime)
    if text or images:
        raise BadRequest(f"shards: {shorten(shards[0])} beside texts or --images; allowed one of them")
    embed_shards(shards, output=output, form=format_, model=model, runtime=runtime)


@_command
def classify(
    images: Positional[Annotated[tuple[str, ...], _flag("IMAGE", "", "Picture files.")]] = (),
    *,
    labels: Annotated[
        tuple[str, ...], _flag("LABEL", "", "What they may show; `-` reads lines from stdin.")
    ] = (),
    language: Annotated[str, _flag("TAG", "en", "The language of the labels.")] = "en",
    templates: Annotated[
        tuple[str, ...], _flag("TEXT", "the language's", "Texts with {} for the label.")
    ] = (),
    k: Annotated[str, _flag("N", "5", "Labels to tell of each picture.", "-k")] = "5",
    multi_label: Annotated[bool, _flag("", "", "Score each label by itself: several may be right.")] = False,
    save: Annotated[str | None, _flag("FILE", "", "Keep the labels' weights for --weights.")] = None,
    weights: Annotated[str | None, _flag("FILE", "", "Saved weights in the place of labels.")] = None,
    model: _Model = None,
    as_json: _Json = False,
) -> None:
    """Tell which of some labels a picture shows: labels in any language, nothing to train.

    A line for each picture, with --json a JSON object.
    """
    from altdiffusion.classifying import classify

    classify(
        images,
        labels,
        language=language,
        templates=templates,
        k=k,
        multi_label=multi_label,
        weights=weights,
        save=save,
        model=model,
        as_json=as_json,
    )


@_command
def evaluate(
    task: Positional[
        Annotated[
            Literal["retrieval", "zero-shot", "generation", "paper"], _flag("TASK", "", "What to measure.")
        ]
    ],
    *,
    data: Annotated[str, _flag("FOLDER", "", "One data set or several, each in its owners' layout.")],
    languages: Annotated[tuple[str, ...], _flag("TAG", "all in the data", "Which languages.")] = (),
    output: Annotated[str | None, _flag("FILE", "", "Also write the report: .json or .md.", "-o")] = None,
    model: _Model = None,
    pictures: Annotated[str | None, _flag("N", "all", "generation: draw so many in each language.")] = None,
    encoder: Annotated[str | None, _flag("MODEL", _OWN, "generation: the AltCLIP that measures.")] = None,
    steps: Annotated[str | None, _flag("N", _OWN, "generation: as in generate.")] = None,
    guidance_scale: Annotated[str | None, _flag("F", _OWN, "generation: as in generate.")] = None,
    as_json: _Json = False,
) -> None:
    """Measure a model on local copies of published data sets, beside the published figures.

    retrieval: recall in both directions and MR. zero-shot: top-1, top-5 and mean per-class recall. paper: all
    that the AltCLIP paper reports and whose data is there; what is missing is listed with who gives it out.
    generation: pictures drawn from the captions, with the same seeds in every language, kept by the report.
    With -o an interrupted run goes on where it was. The layouts are in docs/evaluation.md.
    """
    from altdiffusion.generating import evaluate

    drawing = {"pictures": pictures, "encoder": encoder, "steps": steps, "guidance_scale": guidance_scale}
    common = {"data": data, "languages": languages, "output": output, "model": model, "as_json": as_json}
    evaluate(task, drawing, **common)


@_command
def rate(
    what: Positional[Annotated[Literal["page", "results"], _flag("page|results", "", "Make or read.")]],
    paths: Positional[Annotated[tuple[str, ...], _flag("PATH", "", "What is made or read of.")]],
    *,
    output: Annotated[str | None, _flag("FOLDER", "", "page: a new folder.", "-o")] = None,
    pictures: Annotated[str, _flag("N", "20", "page: so many pairs in each language.")] = "20",
    as_json: _Json = False,
) -> None:
    """Let people compare the pictures of two models, side by side and without their names.

    page A B -o FOLDER: from the pictures of two `evaluate generation` on the same data. FOLDER/page works in
    any browser without a network and gives each rater a file. results FOLDER FILE…: what the answers come to.
    """
    from altdiffusion.generating import rate

    rate(what, paths, output=output, pictures=pictures, as_json=as_json)


@_command
def index(
    folder: Positional[Annotated[str, _flag("FOLDER", "", "Pictures, in it and in all folders below.")]],
    *,
    output: Annotated[str, _flag("INDEX", "", "A new folder, or an index to go on with.", "-o")],
    url: Annotated[str | None, _flag("URL", "in INDEX", "A Qdrant server to hold the vectors.")] = None,
    model: _Model = None,
    as_json: _Json = False,
) -> None:
    """Make a folder of pictures searchable.

    Stopped or killed, it goes on when run again. Files that cannot be used are counted and named.
    """
    from altdiffusion.retrieval import commands

    commands.build(folder, output, url=url, model=model, as_json=as_json)


_Index = Positional[Annotated[str, _flag("INDEX", "", "A folder made by `altdiffusion index`.")]]
_Encoder = Annotated[str | None, _flag("MODEL", "the index's own", "Where the encoder lies now.")]


@_command
def update(index: _Index, *, model: _Encoder = None, as_json: _Json = False) -> None:
    """Bring an index up to date with its folder: new, changed, renamed and deleted pictures."""
    from altdiffusion.retrieval import commands

    commands.update(index, model=model, as_json=as_json)


@_command
def search(
    index: _Index,
    query: Positional[Annotated[tuple[str, ...], _flag("QUERY", "", "Words, in any language.")]] = (),
    *,
    image: Annotated[str | None, _flag("PICTURE", "", "A picture to be like.")] = None,
    weight: Annotated[str | None, _flag("F", "0.5", "The picture's share beside a QUERY.")] = None,
    more: Annotated[str | None, _flag("TEXT", "", "This, but more like TEXT.")] = None,
    less: Annotated[str | None, _flag("TEXT", "", "This, but less like TEXT.")] = None,
    k: Annotated[str | None, _flag("N", "10", "Results at most.", "-k")] = None,
    path: Annotated[str | None, _flag("FOLDER", "", "Only in this folder of the indexed one.")] = None,
    since: Annotated[str | None, _flag("DATE", "", "Only files changed then or later.")] = None,
    until: Annotated[str | None, _flag("DATE", "", "Only files changed then or before.")] = None,
    smallest: Annotated[str | None, _flag("BYTES", "", "Only files this large or larger, as 200k.")] = None,
    largest: Annotated[str | None, _flag("BYTES", "", "Only files this large or smaller.")] = None,
    alike: Annotated[str | None, _flag("F", "0.98", "Cosine from which results are put together.")] = None,
    sheet: Annotated[str | None, _flag("PNG", "", "Also write the results as one picture.")] = None,
    model: _Encoder = None,
    as_json: _Json = False,
) -> None:
    """Find pictures by text, by picture, or by both.

    Prints score and path of each, best first; near-duplicates are counted at the best of them.
    """
    from altdiffusion.retrieval import commands

    fields = {"image": image, "weight": weight, "more": more, "less": less, "k": k, "alike": alike}
    only = {"path": path, "since": since, "until": until, "smallest": smallest, "largest": largest}
    commands.search(index, query, fields, only, model=model, sheet=sheet, as_json=as_json)


_command(_app)


def _parse(argv: Sequence[str]) -> Callable[[], None]:
    return COMMANDS.cli(
        prog="altdiffusion",
        description="Pictures from prompts in 18 languages, and vectors of texts and pictures.",
        args=list(argv),
        config=(tyro.conf.FlagCreatePairsOff, tyro.conf.HelptextFromCommentsOff),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    return run(_parse, argv)
