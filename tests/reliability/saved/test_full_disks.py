"""Full disks: a real one of two megabytes where it can be mounted, otherwise a limit on the size of files."""

import shutil
import subprocess
import sys
from collections import namedtuple

import pytest

from altdiffusion import bundled
from altdiffusion.room import is_full
from tests.reliability.saved.trying import tried
from tests.training import toy
from training.checkpoints import damaged, latest_checkpoint
from training.stage import run_stage

Usage = namedtuple("Usage", "total used free")


@pytest.fixture(params=[2])
def small_disk(request, tmp_path):
    """A folder that holds so many MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={request.param}m", "tmpfs", folder], capture_output=True
    )
    if not mounted or mounted.returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_run_that_will_not_fit_is_refused_before_its_first_step(small_disk, capsys):
    config = toy.config(small_disk / "run", 2, "--width 200")  # 2 x 200 x 200 weights: 640 kB a checkpoint
    with pytest.raises(SystemExit) as stopped:
        run_stage(config, toy.train)
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and said.count("\n") == 1
    what = "a run (3 checkpoints of 643.2 kB, and the model)"
    assert f"has 2.1 MB free of the 2.3 MB that {what} may take; allowed a folder with more room" in said
    assert said.startswith("output_dir: ") and not list((small_disk / "run").glob("checkpoint-*"))


def fill(disk, leave: int) -> None:
    """Takes all but so many bytes of the disk."""
    free = shutil.disk_usage(disk).free
    with (disk / "rest").open("ab") as file:
        file.write(b"x" * max(0, free - leave))


def test_a_disk_that_fills_up_costs_checkpoints_but_never_the_last_one(small_disk, caplog):
    """Once seen beforehand, once only while writing: the room that was asked about has gone."""

    def each(run, loss):
        match run.progress.step:
            case 2:
                fill(small_disk, 20_000)
            case 4:
                run.size = 1
            case 6:
                assert latest_checkpoint(small_disk / "run")[1] == 2
                (small_disk / "rest").unlink()
        return loss

    toy.train(toy.config(small_disk / "run", 7, "--width 120 --run.checkpointing-steps 2"), each)
    asked, written = (next(m for m in caplog.messages if f"of step {step}:" in m) for step in (4, 6))
    assert asked.startswith("no checkpoint of step 4: needed 232.3 kB, free ") and " kB; " in asked
    assert asked.endswith("the newest is of step 2")
    assert written.endswith("the newest is of step 2") and "needed 1 bytes, free " in written
    assert latest_checkpoint(small_disk / "run")[1] == 7
    assert not list((small_disk / "run").glob(".tmp*"))


def pages_left(disk, pages: int) -> None:
    """Leaves room for so many pages of 4 kB."""
    (disk / "rest").unlink(missing_ok=True)
    fill(disk, 4096 * pages)
    assert shutil.disk_usage(disk).free == 4096 * pages


def test_a_disk_that_ends_at_any_page_of_a_checkpoint_costs_that_checkpoint_alone(small_disk, tally):
    """Every write that a checkpoint makes is the first one to fail, in turn; with room it is written."""
    count, told, folder = tally("D3 disk full at any page"), [], small_disk / "run"

    def each(run, loss):
        """Between steps, of which each is saved: the next save has a page more."""
        step = run.progress.step
        run.size = 1  # what is asked for beforehand does not see it coming
        if step > 1:
            with tried(count, f"{step - 2} pages", "refused" if run.saved == 1 else "right"):
                assert latest_checkpoint(folder)[1] == run.saved and run.saved in (1, step)
                assert not list(folder.glob(".tmp*"))
            told.append(run.saved)
            if run.saved != 1:
                raise KeyboardInterrupt
        if step:
            pages_left(small_disk, step - 1)
        return loss

    with pytest.raises(KeyboardInterrupt):
        toy.train(toy.config(folder, 100, "--run.checkpointing-steps 1 --run.ema-decay 0.9"), each)
    assert set(told[:-1]) == {1} and len(told) > 9
    count.check(10)


@pytest.mark.parametrize("small_disk", [8], indirect=True)
def test_an_export_that_finds_no_room_leaves_nothing(small_disk, shared_pipeline, tally):
    """Pages are left for a part of the model, up to all of it, in steps of an uneven size.

    How many are left is told to some 64 pages or more: tmpfs counts them on each processor by itself.
    That all of it can be saved where it has room is tried on the whole disk therefore.
    """
    count = tally("D3 disk full during an export")
    shared_pipeline.save_pretrained(small_disk / "first")
    size = shutil.disk_usage(small_disk).used
    shutil.rmtree(small_disk / "first")
    for pages in range(1, size // 4096 - 64, 37):
        pages_left(small_disk, pages)
        with tried(count, f"{pages} pages", "refused"):
            with pytest.raises(Exception, match="No space left on device") as caught:  # whosever it is
                shared_pipeline.save_pretrained(small_disk / "model")
            assert is_full(caught.value)
            assert [path.name for path in small_disk.iterdir()] == ["rest"]
    (small_disk / "rest").unlink()
    with tried(count, "all of it"):
        shared_pipeline.save_pretrained(small_disk / "model")
        bundled.verify(small_disk / "model")
    count.check(10)


LIMITED = """
import resource, signal, sys
from tests.training import toy

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

def each(run, loss):
    if run.progress.step == 2:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    return loss

toy.train(toy.config(sys.argv[1], 4, "--width 120 --run.checkpointing-steps 2"), each)
"""


def test_files_that_cannot_be_written_leave_the_previous_checkpoint(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, tmp_path], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "no checkpoint of step 4: " in done.stderr and "the newest is of step 2" in done.stderr
    found, step = latest_checkpoint(tmp_path)
    assert step == 2 and damaged(found) is None and not list(tmp_path.glob(".tmp*"))
    assert toy.train(toy.config(tmp_path, 4, "--width 120")).progress.step == 4


def test_what_is_kept_already_needs_no_room_again(tmp_path, monkeypatch):
    config = toy.config(tmp_path, 4, "--run.checkpointing-steps 1")
    toy.train(config)
    size = 72 * 4 * 4  # twice the weights, and AdamW's two states of the half that is trained
    monkeypatch.setattr("shutil.disk_usage", lambda folder: Usage(1, 0, 3 * size))
    run = toy.train(toy.config(tmp_path, 6))
    assert run.size == size and latest_checkpoint(tmp_path)[1] == 6
    with pytest.raises(ValueError, match=r"^output_dir: .* may take; allowed"):
        toy.train(toy.config(tmp_path / "new", 1))
