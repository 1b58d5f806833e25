"""`ImageIndex`: made from a folder of pictures, kept up to date with it, and searched."""

import dataclasses
import functools
import os
import stat
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from altdiffusion import room
from altdiffusion.requests import BadRequest, shorten
from altdiffusion.retrieval import asking, filling, manifest, queries
from altdiffusion.retrieval.asking import Pictures, Share, Texts
from altdiffusion.retrieval.checks import check_encoder, check_target, refuse_another
from altdiffusion.retrieval.embedded import EmbeddedEngine
from altdiffusion.retrieval.engines import Engine, Found
from altdiffusion.retrieval.filling import Known, Progress
from altdiffusion.retrieval.manifest import Manifest
from altdiffusion.retrieval.pictures import Entry, Picture, listed, scan
from altdiffusion.retrieval.queries import Frame
from altdiffusion.retrieval.report import Report, Tally
from altdiffusion.retrieval.server import ServerEngine
from altdiffusion.retrieval.where import ANYWHERE, Where

if TYPE_CHECKING:
    from altdiffusion.model import AltCLIP

    Count = int
    Place = Where
else:  # checked in `asking`, as the others there
    Count = Place = Any

#: Results are looked at for copies of each other; no more than this many, however many copies there are.
_LOOKED_AT = 2000
_ENGINE = "vectors"
#: What the embedded engine takes, measured at 16 to 768 values and 5,000 to 20,000 pictures: each value of a
#: vector twice, in the log of changes and in its segment, and the rest.
_BYTES_A_VALUE, _BYTES_A_PICTURE = 8, 1000


@dataclass(frozen=True)
class Hit:
    """A picture that was found, with those that look alike and scored lower.

    `state` says whether the file is still what was indexed; `altdiffusion update` brings it up to date.
    """

    path: Path
    score: float
    state: Literal["as indexed", "changed", "missing"]
    alike: tuple[Path, ...]
    picture: Picture


class ImageIndex:
    """Pictures of one folder as vectors of one encoder. Close it, or use it in a `with`."""

    report: Report
    """Of the latest build or update."""

    def __init__(
        self,
        folder: Path,
        made: Manifest,
        engine: Engine | None,
        clip: "AltCLIP | None",
        scratch: tempfile.TemporaryDirectory | None = None,
    ) -> None:
        """`build` and `open` are what to call. Before the first picture there is no `engine`."""
        self.folder, self.manifest, self.report = folder, made, Report()
        self._engine, self._clip, self._scratch = engine, clip, scratch

    @classmethod
    def build(
        cls,
        clip: "AltCLIP",
        source: str | os.PathLike | Sequence[str | os.PathLike],
        folder: str | os.PathLike | None = None,
        *,
        url: str | None = None,
        model: str | None = None,
        progress: Progress | None = None,
    ) -> "ImageIndex":
        """Of a folder with all below it, or of the files listed.

        `folder` is where to keep it: a new one, or an index of the same, finished or not, to be brought up to
        date. None keeps it until it is closed. `url` is a Qdrant server to hold the vectors. `model` is what
        `clip` was loaded from, for `open` to find it again; None is the bundled one. `progress` is called
        with how many files are safely dealt with, and of how many.
        """
        root, only = listed(source)
        scratch = tempfile.TemporaryDirectory(prefix="altdiffusion-") if folder is None else None
        target = Path(scratch.name if scratch else os.fspath(folder or "")).absolute()
        if manifest.exists(target):
            refuse_another(target, root, only, url)
            index = cls.open(target, clip)
        else:
            check_target(target, url)
            texts = clip.encode_text(asking.PLAIN).float().cpu().numpy()
            made = Manifest(
                fingerprint=clip.fingerprint,
                dtype=str(clip.dtype).removeprefix("torch."),
                dim=clip.dim,
                root=str(root),
                only=only,
                image_mean=[],
                text_mean=texts.mean(axis=0).tolist(),
                model=model,
                url=url,
                collection=manifest.new_collection() if url else None,
            )
            index = cls(target, made, None, clip, scratch)
        try:
            index.update(progress=progress)
        except BaseException:
            index.close()
            raise
        return index

    @classmethod
    def open(cls, folder: str | os.PathLike, clip: "AltCLIP | None" = None) -> "ImageIndex":
        """An index that was built before. Without `clip` its encoder is loaded when it is first needed."""
        path = Path(folder).absolute()
        made = manifest.read(path)
        if clip is not None:
            check_encoder(path, made, clip)
        return cls(path, made, _engine(path, made), clip)

    def update(self, *, progress: Progress | None = None) -> Report:
        """Files that are new or changed are encoded, and those that are gone forgotten; the rest costs a look
        at its size and date."""
        tally, root = Tally(), Path(self.manifest.root)
        if self._engine is not None:
            self._engine.check()
        entries, unread = self._entries(root, tally)
        known = Known.of(self._engine.pictures() if self._engine else ())
        todo = [e for e in entries if (k := known.by_path.get(e.path)) is None or not k.is_still(e)]
        there = {entry.path for entry in entries}
        gone = [path for path in known.by_path if path not in there and not _below(path, unread)]
        if known.by_path and len(gone) == len(known.by_path) and not todo:
            raise BadRequest(
                f"index: none of its {len(gone):,} pictures is left in {shorten(self.manifest.root)}; "
                "allowed when the folder is there again, or a new index"
            )
        tally.counts["unchanged"] = len(entries) - len(todo)
        if self.manifest.url is None:
            needed = len(todo) * (_BYTES_A_PICTURE + _BYTES_A_VALUE * self.manifest.dim)
            room.check(self.folder, needed, f"an index of {len(todo):,} pictures more", "index")
        engine = self._fill(todo, known, gone, tally, progress)
        engine.settle()
        changed = dataclasses.replace(self.manifest, complete=True, signs=engine.signs)
        if changed != self.manifest:
            changed.write(self.folder)
        self.manifest, self.report = changed, tally.report()
        return self.report

    def _fill(
        self, todo: list[Entry], known: Known, gone: list[str], tally: Tally, progress: Progress | None
    ) -> Engine:
        root, gone_contents = Path(self.manifest.root), {known.by_path[path].sha256 for path in gone}
        if self._engine is None:
            todo = filling.spread(todo)
        batches = filling.batches(self.clip, root, todo, known.by_digest, tally) if todo else ()
        for batch in batches:
            fresh = filling.encode(self.clip, batch.pictures)
            if self._engine is None and fresh:
                self._engine = self._start(np.mean(list(fresh.values()), axis=0))
            if self._engine is not None:
                filling.count(batch.pictures, known, gone_contents, tally)
                filling.store(self._engine, batch.pictures, fresh, self._frame, known)
            gone += [path for path in batch.none if path in known.by_path]
            if progress is not None:
                progress(batch.done, len(todo))
        if self._engine is None:
            raise BadRequest(f"folder: {shorten(str(root))} holds no picture{_reasons(tally.report())}")
        self._engine.delete([known.by_path[path].id for path in gone])
        tally.counts["deleted"] = len(gone) - tally.counts["renamed"]
        return self._engine

    def _start(self, mean: np.ndarray) -> Engine:
        """The first pictures are there: now the folder becomes an index."""
        self.manifest = dataclasses.replace(self.manifest, image_mean=mean.tolist())
        self.folder.mkdir(parents=True, exist_ok=True)
        self.manifest.write(self.folder)
        return _engine(self.folder, self.manifest)

    def search(
        self,
        text: Texts | None = None,
        *,
        image: Pictures | None = None,
        weight: Share = 0.5,
        more: Texts | None = None,
        less: Texts | None = None,
        k: Count = 10,
        where: Place = ANYWHERE,
        alike: Share | None = 0.98,
    ) -> list[Hit]:
        """The `k` best pictures, best first: for a text in any language of the encoder, a picture, or both.

        `weight` is the picture's share beside a text. `more` and `less` turn what is searched for towards
        texts and away from them: this, but more like that. Several texts or pictures are one query, their
        mean. Results with the same content as a better one, or a cosine with it of at least `alike`, are put
        under it.
        """
        asked = asking.Asked.checked(text, image, weight, more, less)
        asking.check_search(k, alike, where)
        made = self.manifest
        query = self._frame.query(asked.parts(self.clip, np.array(made.image_mean), np.array(made.text_mean)))
        limit = min(4 * k, _LOOKED_AT)
        while True:
            assert self._engine is not None  # `build` returns no index without pictures
            found = self._engine.search(query.vector, limit, where)
            groups = self._groups(found, alike)
            if len(groups) >= k or len(found) < limit or limit == _LOOKED_AT:
                return [self._hit([found[n] for n in group], query.offset) for group in groups[:k]]
            limit = min(4 * limit, _LOOKED_AT)

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()
        if self._scratch is not None:
            self._scratch.cleanup()

    def __enter__(self) -> "ImageIndex":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._engine) if self._engine else 0

    @property
    def clip(self) -> "AltCLIP":
        """The encoder, the one that made the index."""
        if self._clip is None:
            from altdiffusion.model import AltCLIP

            clip = AltCLIP.from_pretrained(self.manifest.model, dtype=self.manifest.dtype)
            check_encoder(self.folder, self.manifest, clip)
            self._clip = clip
        return self._clip

    @functools.cached_property
    def _frame(self) -> Frame:
        return Frame(np.array(self.manifest.image_mean), np.array(self.manifest.text_mean))

    def _entries(self, root: Path, tally: Tally) -> tuple[list[Entry], list[str]]:
        if not root.is_dir():
            raise BadRequest(f"index: its folder of pictures, {shorten(str(root))}, is not there")
        if self.manifest.only is not None:
            return [e for path in self.manifest.only if (e := Entry.of(root, path, tally))], []
        return scan(root, tally, leave=self.folder)

    def _groups(self, found: Sequence[Found], alike: Share | None) -> list[list[int]]:
        if not found:
            return []
        vectors = queries.unit(self._frame.whole(np.stack([one.vector for one in found])))
        return queries.alike(vectors, [one.picture.sha256 for one in found], alike)

    def _hit(self, group: Sequence[Found], offset: float) -> Hit:
        root = Path(self.manifest.root)
        first = group[0].picture
        return Hit(
            path=root / first.path,
            score=group[0].score + offset,
            state=_state(root, first),
            alike=tuple(root / other.picture.path for other in group[1:]),
            picture=first,
        )


def _engine(folder: Path, made: Manifest) -> Engine:
    if made.url is not None and made.collection is not None:
        return ServerEngine(made.url, made.collection, made.dim)
    return EmbeddedEngine(folder / _ENGINE, made.dim, signs=made.signs)


def _state(root: Path, picture: Picture) -> Literal["as indexed", "changed", "missing"]:
    """A path that leads out of the root, by `..` or by a link put there since, is as good as missing."""
    path = root / picture.path
    try:
        found = path.lstat()
        inside = Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root))
    except (OSError, ValueError):
        return "missing"
    if not stat.S_ISREG(found.st_mode) or not inside:
        return "missing"
    same = picture.is_still(Entry(picture.path, found.st_size, found.st_mtime_ns))
    return "as indexed" if same else "changed"


def _below(path: str, folders: Sequence[str]) -> bool:
    return any(not folder or path.startswith(f"{folder}/") for folder in folders)


def _reasons(report: Report) -> str:
    told = ", ".join(f"{left.count:,} {reason}: {left.first[0]}" for reason, left in report.left_out.items())
    return f" ({told})" if told else ""
