"""One contract for both engines, and the recall of searches that begin with signs."""

import numpy as np
import pytest
import qdrant_edge

from altdiffusion.requests import BadRequest
from altdiffusion.retrieval import engines
from altdiffusion.retrieval.embedded import EmbeddedEngine
from altdiffusion.retrieval.pictures import Picture
from altdiffusion.retrieval.queries import Frame, Part, unit
from altdiffusion.retrieval.server import ServerEngine
from altdiffusion.retrieval.where import ANYWHERE, Where

PATHS = ["cat.png", "a/dog.png", "a/b/cow.png", "ab/fox.png", "é/1.png", "e\u0301/2.png", "raw\udcff.png"]


def picture(path: str, number: int = 0) -> Picture:
    return Picture(path, 1000 * number, (1_700_000_000 + number) * 10**9 + 1, f"{number:064x}", 8, 9)


@pytest.fixture(params=["embedded", "server"])
def engine(request, tmp_path):
    made = (
        EmbeddedEngine(tmp_path / "vectors", 4)
        if request.param == "embedded"
        else ServerEngine(":memory:", "pictures", 4)
    )
    yield made
    made.close()


@pytest.fixture
def filled(engine):
    engine.store([picture(path, n) for n, path in enumerate(PATHS)], np.eye(7, 4) + 0.1 * np.eye(7, 4, -4))
    return engine


def paths(found) -> list[str]:
    return [one.picture.path for one in found]


def found(engine, where: Where = ANYWHERE, limit: int = 10) -> set[str]:
    query = np.array([1.0, 2.0, 3.0, 4.0])
    return set(paths(engine.search(query, limit, where)))


def test_an_empty_engine_finds_nothing(engine):
    assert len(engine) == 0
    assert not list(engine.pictures())
    assert not found(engine)
    engine.settle()
    assert not engine.signs


def test_pictures_come_back_as_they_were_stored_whatever_their_names(filled):
    assert sorted(filled.pictures(), key=lambda one: one.bytes) == [
        picture(p, n) for n, p in enumerate(PATHS)
    ]


def test_scores_are_dot_products_and_the_best_come_first(filled):
    query = np.array([0.5, 3.0, 2.0, 1.0])
    best = filled.search(query, 3, ANYWHERE)
    assert paths(best) == ["a/dog.png", "a/b/cow.png", "ab/fox.png"]
    assert [one.score for one in best] == pytest.approx([3.0, 2.0, 1.0])
    assert np.allclose(best[0].vector, [0, 1, 0, 0])


def test_storing_again_replaces_and_deleting_forgets(filled):
    filled.store([picture("cat.png", 50)], np.array([[0.0, 0, 0, 9]]))
    assert len(filled) == len(PATHS)
    assert np.allclose(next(iter(filled.vectors([picture("cat.png").id]).values())), [0, 0, 0, 9])
    filled.delete([picture("cat.png").id, picture("never there").id])
    assert len(filled) == len(PATHS) - 1
    assert "cat.png" not in found(filled)
    assert not filled.vectors([picture("cat.png").id])


def test_beyond_the_limit_signs_begin_and_results_stay(filled, monkeypatch):
    query = np.array([0.5, 3.0, 2.0, 1.0])
    before = filled.search(query, 3, Where(path="a"))
    monkeypatch.setattr(engines, "EXACT_UP_TO", 3)
    filled.settle()
    assert filled.signs
    after = filled.search(query, 3, Where(path="a"))
    assert [(one.picture, one.score) for one in after] == [(one.picture, one.score) for one in before]
    filled.store([picture("new.png", 60)], np.array([[0.0, 9, 0, 0]]))
    assert paths(filled.search(query, 1, ANYWHERE)) == ["new.png"]


def test_vectors_are_asked_for_by_id(filled):
    ids = [picture(path).id for path in PATHS[:3]]
    got = filled.vectors([*ids, picture("never there").id])
    assert {key: value.tolist() for key, value in got.items()} == dict(
        zip(ids, np.eye(3, 4).tolist(), strict=True)
    )


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        (Where(path="a"), {"a/dog.png", "a/b/cow.png"}),
        (Where(path="a/b"), {"a/b/cow.png"}),
        (Where(path="cat.png"), {"cat.png"}),
        (Where.build(path="é"), {"é/1.png", "e\u0301/2.png"}),
        (Where.build(path="./e\u0301/"), {"é/1.png", "e\u0301/2.png"}),
        (Where(since=1_700_000_005.0), {"e\u0301/2.png", "raw\udcff.png"}),
        (Where(since=1_700_000_001.0, until=1_700_000_003.0), {"a/dog.png", "a/b/cow.png"}),
        (Where(smallest=1000, largest=2000), {"a/dog.png", "a/b/cow.png"}),
        (Where(path="a", smallest=2000), {"a/b/cow.png"}),
        (Where(path="none"), set()),
    ],
)
def test_filters(filled, where, expected):
    assert found(filled, where) == expected


def test_what_was_stored_is_there_after_opening_again(tmp_path):
    first = EmbeddedEngine(tmp_path / "vectors", 4)
    first.store([picture("cat.png")], np.eye(1, 4))
    first.close()
    again = EmbeddedEngine(tmp_path / "vectors", 4)
    assert [one.path for one in again.pictures()] == ["cat.png"]
    with pytest.raises(BadRequest, match=r"^index: .* is in use by another process; allowed one at a time"):
        EmbeddedEngine(tmp_path / "vectors", 4)
    again.close()


def test_a_damaged_engine_is_refused_in_one_line(tmp_path):
    EmbeddedEngine(tmp_path / "vectors", 4).close()
    (tmp_path / "vectors/edge_config.json").write_text("{")
    with pytest.raises(BadRequest, match=r"^index: .* cannot be opened \(.*\)$"):
        EmbeddedEngine(tmp_path / "vectors", 4)


def test_a_server_that_is_not_there_is_named():
    with pytest.raises(BadRequest, match=r"^url: 'http://localhost:9' does not answer as Qdrant"):
        ServerEngine("http://localhost:9", "pictures", 4)


DIM, COUNT = 128, 8000


def two_kinds() -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors in clusters, pictures and texts each in a region of its own, as CLIP's are."""
    random = np.random.default_rng(0)
    clusters = random.standard_normal((200, DIM))
    image_gap, text_gap = 1.5 * random.standard_normal((2, DIM))
    images = clusters[random.integers(0, 200, COUNT)] + 0.8 * random.standard_normal((COUNT, DIM)) + image_gap
    texts = clusters[random.integers(0, 200, 30)] + 0.8 * random.standard_normal((30, DIM)) + text_gap
    return unit(images).astype(np.float32), unit(texts).astype(np.float32)


def signed(folder, stored: np.ndarray) -> EmbeddedEngine:
    """An engine that begins with signs, as beyond 100,000."""
    engine = EmbeddedEngine(folder, DIM)
    for first in range(0, COUNT, 2000):
        pictures = [picture(str(n), n) for n in range(first, first + 2000)]
        engine.store(pictures, stored[first : first + 2000])
    limit, engines.EXACT_UP_TO = engines.EXACT_UP_TO, COUNT - 1
    engine.settle()
    engines.EXACT_UP_TO = limit
    assert engine.signs
    return engine


@pytest.fixture(scope="module")
def sets():
    """Pictures, texts, and the true neighbours of each text."""
    images, texts = two_kinds()
    return images, texts, [set(np.argsort(-(images @ text))[:10].tolist()) for text in texts]


@pytest.fixture(scope="module")
def searched(sets, tmp_path_factory):
    images, texts, _ = sets
    frame = Frame(images[:128].mean(axis=0), texts.mean(axis=0))
    engine = signed(tmp_path_factory.mktemp("recall") / "vectors", frame.picture(images))
    yield engine, frame
    engine.close()


def recall(sets, search) -> float:
    _, texts, truth = sets
    hits = [len({int(path) for path in search(text)} & best) for text, best in zip(texts, truth, strict=True)]
    return sum(hits) / (10 * len(texts))


def test_searches_by_signs_find_the_true_neighbours(sets, searched, monkeypatch):
    """Of 8,000 a twentieth is compared, as 4,000 are of 80,000."""
    engine, frame = searched
    monkeypatch.setattr(engines, "COMPARED", COUNT // 20)
    search = lambda text: paths(engine.search(frame.query([Part(text, text)]).vector, 10, ANYWHERE))  # noqa: E731
    assert recall(sets, search) >= 0.99


def test_the_trap_is_there_searched_without_parameters_signs_lose_neighbours_silently(sets, searched):
    """Why every search passes them: this is the same index, asked as Qdrant's quick start does."""
    engine, frame = searched

    def search(text: np.ndarray) -> list[str]:
        nearest = qdrant_edge.Query.Nearest(frame.query([Part(text, text)]).vector.tolist())
        request = qdrant_edge.QueryRequest(limit=10, query=nearest, with_payload=True)
        return [point.payload["path"] for point in engine._shard.query(request)]

    assert recall(sets, search) < 0.7


def test_the_frame_matters_to_signs_of_one_bit(sets, tmp_path, monkeypatch):
    """The same search of vectors as they are, of vectors less their mean, and in their frame."""
    images, texts, _ = sets
    mean = images[:128].mean(axis=0)
    frame = Frame(mean, texts.mean(axis=0))
    monkeypatch.setattr(engines, "COMPARED", 100)
    monkeypatch.setattr(engines, "SHORT_BELOW", 0)

    recalls = []
    for stored, turned in (
        (images, lambda text: text),
        (images - mean, lambda text: text),
        (frame.picture(images), lambda text: frame.query([Part(text, text)]).vector),
    ):
        engine = signed(tmp_path / f"vectors {len(recalls)}", stored)
        recalls.append(
            recall(sets, lambda t, e=engine, turned=turned: paths(e.search(turned(t), 10, ANYWHERE)))
        )
        engine.close()
    assert recalls[2] > max(recalls[:2]) + 0.05


@pytest.fixture(scope="module")
def linked(sets, tmp_path_factory):
    """As `searched`, with a graph, which so few vectors have only if the engine is told."""
    images, texts, _ = sets
    frame = Frame(images[:128].mean(axis=0), texts.mean(axis=0))
    folder = tmp_path_factory.mktemp("graph") / "vectors"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engines, "SCANNED_KB", 1000)
        engine = signed(folder, frame.picture(images))
        yield engine, frame
        engine.close()
    assert list(folder.rglob("graph*.bin")), "no graph was built"


def test_the_graph_leads_to_the_true_neighbours(sets, linked, monkeypatch):
    engine, frame = linked
    monkeypatch.setattr(engines, "COMPARED", COUNT // 20)
    search = lambda text: paths(engine.search(frame.query([Part(text, text)]).vector, 10, ANYWHERE))  # noqa: E731
    assert recall(sets, search) >= 0.99


@pytest.mark.parametrize("largest", [COUNT * 500, COUNT * 20])
def test_the_graph_finds_the_neighbours_that_a_filter_leaves(sets, linked, largest):
    """Half of the pictures, and a fiftieth of them."""
    engine, frame = linked
    images, texts, _ = sets
    kept = np.array([n for n in range(COUNT) if picture(str(n), n).bytes <= largest])
    assert 100 < len(kept) < COUNT
    hits = 0
    for text in texts:
        best = set(kept[np.argsort(-(images[kept] @ text))[:10]].tolist())
        query = frame.query([Part(text, text)]).vector
        hits += len({int(path) for path in paths(engine.search(query, 10, Where(largest=largest)))} & best)
    assert hits >= 0.99 * 10 * len(texts)


def test_a_filter_holds_in_both_stages(sets, searched):
    engine, frame = searched
    query = frame.query([Part(sets[1][0], sets[1][0])])
    found = engine.search(query.vector, 10, Where(smallest=6_000_000))
    assert len(found) == 10
    assert all(one.picture.bytes >= 6_000_000 for one in found)
