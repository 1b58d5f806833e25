"""What `altdiffusion embed` does; with `--shards` a file of features for each shard, done ones skipped."""

import importlib.util
import itertools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from altdiffusion import aside, room
from altdiffusion.requests import BadRequest, shorten
from altdiffusion.shards import Shard, shards_of
from altdiffusion.starting import collector_paused
from altdiffusion.terminal import note, say

if TYPE_CHECKING:
    from altdiffusion.encoding import Block

_FORMS = ("npy", "parquet")
_NAMED = 5  # unusable rows that are named; the others are counted


def embed(
    text: Sequence[str],
    images: Sequence[str],
    *,
    form: str,
    output: str | None,
    model: str | None,
    runtime: str,
) -> None:
    """Writes a row for each text and picture, in their order, as soon as its batch is encoded.

    The file `output` is there when all are.
    """
    _check_output(form, output)
    from altdiffusion import encoding
    from altdiffusion.checkpoints import resolve

    lines = (line.rstrip("\r\n") for line in sys.stdin)
    batches = encoding.batches(lines if tuple(text) == ("-",) or not (text or images) else text, images)
    first = next(batches, None)  # opened before the model: most mistakes are in it
    if first is None:
        raise BadRequest("text: nothing given; allowed texts, --images, or lines on stdin")
    resolve(model)
    with collector_paused():
        from altdiffusion.model import AltCLIP

        clip = AltCLIP.from_pretrained(model, runtime=runtime)
    rows = encoding.encode(clip, itertools.chain([first], batches))
    if output is None:
        encoding.write(rows, form, sys.stdout.buffer)
        return
    try:
        with aside.file(Path(output), overwrite=False) as place, place.open("xb") as stream:
            encoding.write(rows, form, stream)
    except FileExistsError:
        raise _taken(output) from None


def _check_output(form: str, output: str | None) -> None:
    if output is not None:
        from altdiffusion.images import destination

        destination(str(Path(output).parent))
        if Path(output).exists():
            raise _taken(output)
    elif form != "jsonl" and sys.stdout.isatty():
        raise BadRequest(f"format: {form!r} is not for a terminal; allowed with --output FILE or a pipe")
    if form == "parquet" and importlib.util.find_spec("pyarrow") is None:
        raise BadRequest("format: 'parquet' needs pyarrow (pip install pyarrow); allowed here jsonl, npy")


def _taken(output: str) -> BadRequest:
    return BadRequest(f"output: {shorten(output)} exists; allowed a new file")


def embed_shards(
    paths: Sequence[str], *, output: str | None, form: str, model: str | None, runtime: str
) -> None:
    """Process n of m takes every m-th shard from the n-th on."""
    if form not in _FORMS:
        raise BadRequest(f"format: {form!r} is not for shards; allowed {', '.join(_FORMS)}")
    if form == "parquet" and importlib.util.find_spec("pyarrow") is None:
        raise BadRequest("format: 'parquet' needs pyarrow (pip install pyarrow); allowed here npy")
    if output is None:
        raise BadRequest("output: shards need a folder for their files; allowed --output FOLDER")
    folder = Path(output)
    if folder.exists() and not folder.is_dir():
        raise BadRequest(f"output: {shorten(output)} is no folder; allowed a new one, or one to go on in")
    shards = shards_of(paths)
    from altdiffusion import encoding
    from altdiffusion.checkpoints import resolve

    resolve(model)
    from altdiffusion.model import AltCLIP

    number, of, device = encoding.process()
    clip = AltCLIP.from_pretrained(model, device=device if runtime == "torch" else None, runtime=runtime)
    folder.mkdir(parents=True, exist_ok=True)
    rows = {s.name: s.count for s in shards if not _finished(folder, s, form, clip.fingerprint)}
    _check_room(folder, sum(rows.values()), clip.dim)
    for shard in shards[number::of]:
        if shard.name in rows:
            block = encoding.encode_rows(clip, shard.rows())
            _check_room(folder, len(block.keys), clip.dim)
            {"npy": _write_npy, "parquet": _write_parquet}[form](folder, shard, block, clip.fingerprint)
            _tell(shard, block)
        say(str(folder / f"{shard.name}.{form}"))


def _check_room(folder: Path, rows: int, dim: int) -> None:
    """For a vector of float32 of each, and its key."""
    room.check(folder, rows * (4 * dim + 64), f"the features of {rows:,} rows", "output")


def _tell(shard: Shard, block: "Block") -> None:
    for key, error in list(block.errors.items())[:_NAMED]:
        note(f"{shard.name}: {key}: {error}")
    if block.errors:
        note(f"{shard.name}: {len(block.errors):,} of {len(block.keys):,} rows could not be used")


def _finished(folder: Path, shard: Shard, form: str, fingerprint: str) -> bool:
    """Whether the shard's features by this model are there; another model's are refused."""
    file = folder / f"{shard.name}.{form}" if form == "parquet" else folder / f"{shard.name}.json"
    if not file.exists():
        return False
    if form == "parquet":
        import pyarrow.parquet

        found = (pyarrow.parquet.read_schema(file).metadata or {}).get(b"fingerprint", b"?").decode()
    else:
        found = json.loads(file.read_text(encoding="utf-8")).get("fingerprint", "?")
    if found != fingerprint:
        raise BadRequest(
            f"output: {shorten(str(file))} is by the model {found[:10]}, this one is {fingerprint[:10]}; "
            "allowed another folder"
        )
    return True


def _write_parquet(folder: Path, shard: Shard, block: "Block", fingerprint: str) -> None:
    import pyarrow
    import pyarrow.parquet

    vectors = pyarrow.list_(pyarrow.float32())
    columns = {
        "key": pyarrow.array(block.keys, pyarrow.string()),
        "text": pyarrow.array(block.texts, pyarrow.string()),
        "image_embedding": pyarrow.array(block.image_vectors, vectors),
        "text_embedding": pyarrow.array(block.text_vectors, vectors),
        "error": pyarrow.array([block.errors.get(key) for key in block.keys], pyarrow.string()),
    }
    table = pyarrow.table(columns).replace_schema_metadata({"fingerprint": fingerprint})
    with aside.file(folder / f"{shard.name}.parquet") as place:
        pyarrow.parquet.write_table(table, place)


def _write_npy(folder: Path, shard: Shard, block: "Block", fingerprint: str) -> None:
    """NAME.npy for pictures and NAME.text.npy for texts, then NAME.json, whose lists name their rows."""
    import numpy as np

    notes: dict[str, Any] = {"fingerprint": fingerprint, "errors": block.errors}
    for kind, vectors, end in (
        ("image", block.image_vectors, "npy"),
        ("text", block.text_vectors, "text.npy"),
    ):
        there = [n for n, vector in enumerate(vectors) if vector is not None]
        notes[f"{kind}_keys"] = [block.keys[n] for n in there]
        array = np.array([vectors[n] for n in there], dtype=np.float32)
        with aside.file(folder / f"{shard.name}.{end}") as place, place.open("wb") as stream:
            np.save(stream, array)
    aside.write_text(folder / f"{shard.name}.json", json.dumps(notes, ensure_ascii=False))
