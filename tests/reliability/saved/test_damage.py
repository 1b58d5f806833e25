"""A byte that flips, a file that is cut or gone, in what is written to be read long after: found and named,
and where there is an older one, that is taken.
"""

import itertools
import shutil
from pathlib import Path

import pytest

from altdiffusion import AltCLIP, AltDiffusionPipeline, ImageIndex, bundled
from tests.reliability.saved.trying import HARMS, harm, tried
from tests.retrieval.test_index import save
from tests.training import toy
from training.checkpoints import MANIFEST, damaged, latest_checkpoint


def files_of(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_every_file_of_a_checkpoint_is_missed_and_the_older_one_taken(tmp_path, tally, caplog):
    count = tally("D4 damaged checkpoints")
    toy.train(toy.config(tmp_path / "run", 3, "--run.checkpointing-steps 1 --run.ema-decay 0.9"))
    names = files_of(tmp_path / "run/checkpoint-00000003")
    assert len(names) > 6
    for name, how in itertools.product(names, HARMS):
        folder = Path(shutil.copytree(tmp_path / "run", tmp_path / "harmed"))
        harm(folder / "checkpoint-00000003" / name, how)
        caplog.clear()
        with tried(count, f"{name} {how}", "refused"):
            named = name in (damaged(folder / "checkpoint-00000003") or "")
            assert named or (name, how) == (MANIFEST, "flip")  # a list that names another file is no list
            assert latest_checkpoint(folder)[1] == 2
            assert "checkpoint-00000003 is passed over: " in caplog.text
        shutil.rmtree(folder)
    count.check(3 * len(names))
    harm(tmp_path / "run/checkpoint-00000003" / names[0], "flip")
    run = toy.train(toy.config(tmp_path / "run", 4, "--run.ema-decay 0.9"))
    assert run.progress.step == 4


@pytest.fixture(scope="module")
def indexed(shared_folder, tmp_path_factory):
    """An encoder, and a folder with an index of 12 pictures."""
    folder = tmp_path_factory.mktemp("indexed")
    clip = AltCLIP.from_pretrained(shared_folder, device="cpu")
    for n in range(12):
        save(folder / f"pictures/{n}.png", n)
    ImageIndex.build(clip, folder / "pictures", folder / "index").close()
    return clip, folder


def test_every_file_of_an_index_is_missed(indexed, tmp_path, tally):
    """As the engine would heal or overlook many, all are found by the list beside it."""
    count, (clip, folder) = tally("D4 damaged indexes"), indexed
    names = files_of(folder / "index")
    assert {"index.json", "vectors.json"} < set(names) and len(names) > 15
    for name, how in itertools.product(names, HARMS):
        index = tmp_path / "harmed"
        shutil.copytree(folder / "index", index, copy_function=linked)
        harm(index / name, how)
        wanted = (name, how) == ("vectors.json", "remove")  # it is taken as it is, as one of old would be
        with tried(count, f"{name} {how}", "right" if wanted else "refused"):
            if wanted:
                with ImageIndex.open(index, clip) as opened:
                    assert len(opened.search("a cat", k=12, alike=None)) == 12
            else:
                with pytest.raises(ValueError, match=r"^index: ") as caught:
                    ImageIndex.open(index, clip)
                assert "\n" not in str(caught.value)
                assert "damaged" in str(caught.value) or (name, how) == ("index.json", "remove")
                assert name in str(caught.value) or name in ("index.json", "vectors.json")
        shutil.rmtree(index)
    count.check(3 * len(names))


def linked(source: str, target: str) -> None:
    """The engine's files are large and sparse: a harmed one is made anew, the others are shared."""
    Path(target).hardlink_to(source)


def test_an_index_that_was_changed_and_closed_is_known_again(indexed, tmp_path):
    clip, folder = indexed
    index = Path(shutil.copytree(folder / "index", tmp_path / "index"))
    with ImageIndex.open(index, clip) as opened:
        (listed := index / "vectors.json").read_text()
        opened.search("a cat")
        assert listed.exists()
        opened.update()
        assert not listed.exists(), "what is being changed has no list"
    assert listed.exists()
    with ImageIndex.open(index, clip) as opened:
        assert len(opened) == 12


def test_every_file_of_a_saved_model_is_missed(shared_pipeline, tmp_path, tally):
    count = tally("D4 damaged models")
    shared_pipeline.save_pretrained(tmp_path / "model")
    names = [name for name in files_of(tmp_path / "model") if name != bundled.MANIFEST]
    for name, how in itertools.product(names, HARMS):
        folder = tmp_path / "harmed"
        shutil.copytree(tmp_path / "model", folder, copy_function=linked)
        harm(folder / name, how)
        with tried(count, f"{name} {how}", "refused"):
            with pytest.raises(ValueError, match=r"^model: ") as caught:
                bundled.verify(folder)
            assert name in str(caught.value) and "\n" not in str(caught.value)
            if name.endswith(".safetensors"):
                with pytest.raises(ValueError, match=r"^model: ") as caught:
                    (AltCLIP if name.startswith("altclip/") else AltDiffusionPipeline).from_pretrained(
                        folder / "altclip" if name.startswith("altclip/") else folder, device="cpu"
                    )
                assert Path(name).name in str(caught.value) or how == "remove"
        shutil.rmtree(folder)
    count.check(3 * len(names))
