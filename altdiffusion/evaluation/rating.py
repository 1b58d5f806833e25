"""People compare the pictures of two models: a page for them, and what their answers come to.

The page tells nothing of which model drew what: sides are drawn by lot, pictures are written anew without
their notes, and the key stays outside the folder that is given away. A rater's file is anybody's and is
checked.
"""

import dataclasses
import hashlib
import json
import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from altdiffusion import aside
from altdiffusion.images import destination, open_image, read_provenance, save_png
from altdiffusion.languages import LANGUAGES
from altdiffusion.requests import BadRequest, Provenance, shorten

_MAX_FILE = 10_000_000  # bytes of a rater's file: a hundred thousand answers
Model = Literal["a", "b"]
Choice = Literal["left", "right", "same"]


@dataclass(frozen=True)
class Pair:
    """Two pictures of one text; `left` is the model whose picture is there."""

    id: str
    language: str
    prompt: str
    name: str
    left: Model


@dataclass(frozen=True)
class Key:
    """What raters are not told. `models` are what the pictures say of who drew them."""

    page: str
    models: dict[Model, str]
    pairs: tuple[Pair, ...]


@dataclass(frozen=True)
class Ratings:
    """A rater's file."""

    page: str
    rater: str
    answers: dict[str, Choice]


@dataclass(frozen=True)
class Preference:
    """How often each model was preferred, and A's share with no difference as a half, 95 % interval."""

    language: str
    pairs: int
    answers: int
    a: int
    b: int
    same: int
    share: float
    low: float
    high: float


@dataclass(frozen=True)
class RatingReport:
    """`rows` by language, then over all. `agreement` is how often two raters gave a pair the same answer."""

    models: dict[Model, str]
    raters: int
    agreement: float | None
    rows: tuple[Preference, ...]

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def to_markdown(self) -> str:
        lines = [
            "# Ratings",
            "",
            f"- A: {self.models['a']}",
            f"- B: {self.models['b']}",
            f"- raters: {self.raters}",
        ]
        if self.agreement is not None:
            lines.append(f"- two raters of one pair agree in {100 * self.agreement:.1f} %")
        lines += [
            "",
            "| language | pairs | answers | A better | B better | no difference | A's share, % | 95 % |",
            f"|{'---|' * 8}",
        ]
        for row in self.rows:
            counts = f"{row.pairs} | {row.answers} | {row.a} | {row.b} | {row.same}"
            interval = f"{100 * row.low:.1f} to {100 * row.high:.1f}"
            lines.append(f"| {row.language} | {counts} | {100 * row.share:.1f} | {interval} |")
        lines += ["", "No difference counts as half a preference; the interval is Wilson's, over pairs."]
        return "\n".join(lines) + "\n"


def make(first: Path, second: Path, output: Path, count: int) -> Path:
    """Writes `output`/page for raters and `output`/key.json; returns the page's index.html."""
    for folder in (first, second):
        if not folder.is_dir():
            raise BadRequest(f"paths: {shorten(str(folder))} is no folder; allowed a folder of pictures")
    destination(str(output.parent))
    if output.exists():
        raise BadRequest(f"output: {shorten(str(output))} exists; allowed a new folder")
    key = _key(first, second, count)
    with aside.folder(output) as place:
        pictures = place / "page" / "pictures"
        pictures.mkdir(parents=True)
        for pair in key.pairs:
            sides = (first, second) if pair.left == "a" else (second, first)
            for side, folder in zip(("left", "right"), sides, strict=True):
                save_png(open_image(folder / pair.name, "paths"), pictures / f"{pair.id}-{side}.png")
        (place / "page" / "index.html").write_text(_page(key), encoding="utf-8")
        text = json.dumps(dataclasses.asdict(key), ensure_ascii=False, indent=1) + "\n"
        (place / "key.json").write_text(text, encoding="utf-8")
    return output / "page" / "index.html"


def read(folder: Path, files: Sequence[Path]) -> RatingReport:
    """What the raters' files say, with the key of the folder that `make` wrote."""
    key = _checked(Key, folder / "key.json")
    known = {pair.id: pair for pair in key.pairs}
    by_file: dict[str, Ratings] = {}
    for file in files:
        ratings = _checked(Ratings, file)
        if ratings.page != key.page:
            raise BadRequest(f"paths: {shorten(str(file))} is of another page than {shorten(str(folder))}")
        if unknown := sorted(ratings.answers.keys() - known.keys()):
            raise BadRequest(
                f"paths: {shorten(str(file))} rates {shorten(unknown[0])}, which is no pair here"
            )
        by_file.setdefault(json.dumps(dataclasses.asdict(ratings), sort_keys=True), ratings)
    if len(by_file) < len(files):
        raise BadRequest("paths: two of the files hold the same answers; allowed each rater's once")
    answers: dict[str, list[Choice]] = defaultdict(list)
    for ratings in by_file.values():
        for number, choice in ratings.answers.items():
            answers[number].append(choice)
    if not answers:
        raise BadRequest("paths: no answers in the raters' files")
    tags = dict.fromkeys(pair.language for pair in key.pairs if pair.id in answers)
    rated = [(pair, answers[pair.id]) for pair in key.pairs if pair.id in answers]
    rows = [_preference(tag, [one for one in rated if one[0].language == tag]) for tag in tags]
    rows += [_preference("all", rated)] if len(rows) > 1 else []
    return RatingReport(key.models, len(by_file), _agreement(answers.values()), tuple(rows))


def _key(first: Path, second: Path, count: int) -> Key:
    """Up to `count` pairs of each language: files of one name in both folders, drawn from the same text."""
    names = sorted(
        file.relative_to(first).as_posix()
        for file in first.glob("*/*.png")
        if file.parent.name in LANGUAGES and (second / file.relative_to(first)).is_file()
    )
    taken: Counter[str] = Counter()
    lot = random.Random(f"{len(names)} {count}")
    chosen, models = [], {"a": set(), "b": set()}
    for name in names:
        tag = name.partition("/")[0]
        if taken[tag] == count:
            continue
        taken[tag] += 1
        a, b = (read_provenance(folder / name, "paths") for folder in (first, second))
        if (a.prompt, a.seed) != (b.prompt, b.seed):
            raise BadRequest(f"paths: {shorten(name)} is of another text or seed in each folder")
        models["a"].add(_drawn_by(a))
        models["b"].add(_drawn_by(b))
        chosen.append((tag, a.prompt, name))
    if not chosen:
        raise BadRequest("paths: the two folders have no TAG/NUMBER.png in common; allowed two of `evaluate`")
    lot.shuffle(chosen)
    sides: list[Model] = ["a", "b"] * ((len(chosen) + 1) // 2)  # each model as often on the left
    lot.shuffle(sides)
    pairs = tuple(
        Pair(f"{number:05}", *one, left=side)
        for number, (one, side) in enumerate(zip(chosen, sides, strict=False))
    )
    drawn_by: dict[Model, str] = {"a": ", ".join(sorted(models["a"])), "b": ", ".join(sorted(models["b"]))}
    page = hashlib.sha256(repr((drawn_by, pairs)).encode()).hexdigest()[:16]
    return Key(page, drawn_by, pairs)


def _drawn_by(made: Provenance) -> str:
    name, fingerprint = made.model or "a model without a name", (made.fingerprint or "no fingerprint")[:12]
    return f"{name} ({fingerprint}), {made.steps} steps, guidance {made.guidance_scale}"


def _page(key: Key) -> str:
    pairs = [
        {
            "id": pair.id,
            "prompt": pair.prompt,
            "language": pair.language,
            "direction": LANGUAGES[pair.language].direction,
        }
        for pair in key.pairs
    ]
    data = json.dumps({"page": key.page, "pairs": pairs}, ensure_ascii=False)
    template = (Path(__file__).parent / "rating.html").read_text(encoding="utf-8")
    return template.replace("@@DATA@@", data.replace("<", "\\u003c"))  # a text may hold </script>


def _checked(kind: Any, file: Path) -> Any:
    try:
        with file.open("rb") as stream:
            content = stream.read(_MAX_FILE + 1)
        if len(content) > _MAX_FILE:
            raise BadRequest(f"paths: {shorten(str(file))} is too large; allowed {_MAX_FILE:,} bytes")
        return TypeAdapter(kind).validate_json(content)
    except OSError as error:
        raise BadRequest(f"paths: {shorten(str(file))} cannot be read ({error.strerror})") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "it"
        message = f"{shorten(str(file))} is no {kind.__name__.lower()} file ({where[:80]}: {first['msg']})"
        raise BadRequest(f"paths: {message}") from None


def _preference(tag: str, rated: Sequence[tuple[Pair, list[Choice]]]) -> Preference:
    from altdiffusion.evaluation.metrics import proportion

    count: Counter[str] = Counter()
    share = 0.0
    for pair, choices in rated:
        right: Model = "b" if pair.left == "a" else "a"
        said = Counter({"left": pair.left, "right": right}.get(choice, "same") for choice in choices)
        count += said
        share += (said["a"] + said["same"] / 2) / len(choices)
    score = proportion(share, len(rated))
    values = (count["a"], count["b"], count["same"], score.value, score.low, score.high)
    return Preference(tag, len(rated), count.total(), *values)


def _agreement(answers: Any) -> float | None:
    same = [a == b for choices in answers for a, b in combinations(choices, 2)]
    return sum(same) / len(same) if same else None
