"""The loop: steps that are not finite, averages, what a run reports, optimizers, whose folder it is."""

import contextlib
import json
import os
import pty
import re
import select
import signal
import sqlite3
import subprocess
import sys
import termios
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import torch
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from torch.testing import assert_close

from tests.training import toy
from training import output_folder
from training.checkpoints import MANIFEST, latest_checkpoint
from training.config import parse
from training.loop import Diverged
from training.progress_bar import memory
from training.stage import run_stage


def strict(folder: Path) -> list[dict]:
    """The metrics, as a reader that knows no NaN takes them."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line, parse_constant=refuse) for line in lines]


def spoilt(kind: str, steps: range):
    """A loss, or gradients, that are not finite at `steps`."""

    def each(run, loss):
        if run.progress.step not in steps:
            return loss
        if kind == "loss":
            return loss * float("nan")
        handle = run.parameters[0].register_hook(lambda grad: grad * float("inf"))
        run.accelerator.backward(loss, retain_graph=True)
        handle.remove()
        return loss

    return each


@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_a_step_that_is_not_finite_is_skipped_and_counted(tmp_path, kind, caplog):
    weights = []

    def each(run, loss):
        weights.append(run.parameters[0].detach().clone())
        return spoilt(kind, range(2, 4))(run, loss)

    run = toy.train(toy.config(tmp_path, 6, "--run.ema-decay 0.9"), each)
    assert run.progress.skipped == 2 and "step 2 skipped" in caplog.text
    assert weights[2].equal(weights[3]) and weights[3].equal(weights[4])
    assert not weights[4].equal(weights[5])
    assert all(torch.isfinite(p).all() for p in (*run.parameters, *run.ema.shadow_params))
    lines = strict(tmp_path)
    assert [line["skipped"] for line in lines] == [0, 0, 1, 2, 2, 2]
    assert (lines[2]["loss"] is None) == (kind == "loss")


@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_five_in_a_row_end_the_run_and_leave_the_last_checkpoint_whole(tmp_path, kind, capsys):
    config = toy.config(tmp_path, 20, "--run.checkpointing-steps 3")
    with pytest.raises(SystemExit) as stopped:
        run_stage(config, lambda config: toy.train(config, spoilt(kind, range(4, 20))))
    assert stopped.value.code == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.startswith("5 steps in a row were not finite, up to step 8")
    assert latest_checkpoint(tmp_path)[1] == 6
    toy.train(toy.config(tmp_path / "clean", 6))
    good, clean = (
        load_file(folder / "checkpoint-00000006/model.safetensors")
        for folder in (tmp_path, tmp_path / "clean")
    )
    assert all(torch.isfinite(value).all() for value in good.values()) and good.keys() == clean.keys()
    run = toy.train(config)
    assert run.progress.step == 20 and run.progress.skipped == 2


def test_four_in_a_row_do_not_end_a_run(tmp_path):
    run = toy.train(toy.config(tmp_path, 12), spoilt("loss", range(1, 5)))
    assert run.progress.skipped == 4
    with pytest.raises(Diverged):
        toy.train(toy.config(tmp_path / "more", 12), spoilt("loss", range(1, 6)))


def test_the_average_is_of_the_trained_tensors_alone_and_is_what_is_exported(tmp_path):
    run = toy.train(toy.config(tmp_path, 6, "--run.ema-decay 0.9 --optim.learning-rate 0.1"))
    live = [parameter.detach().clone() for parameter in run.parameters]
    assert [s.shape for s in run.ema.shadow_params] == [p.shape for p in live] and len(live) == 2
    assert not any(s.equal(p) for s, p in zip(run.ema.shadow_params, live, strict=True))
    with run.averaged():
        inside = [parameter.detach().clone() for parameter in run.parameters]
    assert all(p.equal(before) for p, before in zip(run.parameters, live, strict=True))
    trained = run.trained()
    for shadow, seen, exported in zip(
        run.ema.shadow_params, inside, trained.trained.parameters(), strict=True
    ):
        assert shadow.equal(seen) and shadow.equal(exported)
    assert trained.frozen.weight.equal(toy.Net(8).frozen.weight)


def test_a_step_that_fp16_leaves_out_lowers_its_scale(tmp_path):
    """accelerate's scaler needs a GPU; here it gets PyTorch's own for the CPU."""
    scales = []

    def each(run, loss):
        if run.progress.step == 0:
            run.accelerator.scaler = torch.amp.GradScaler("cpu")
            plain = run.optimizer.optimizer
            run.optimizer = AcceleratedOptimizer(plain, False, run.accelerator.scaler)
            run.before = run.parameters[0].detach().clone()
        if run.progress.step == 1:
            assert run.parameters[0].equal(run.before)
        scales.append(run.accelerator.scaler.get_scale())
        return loss * (float("inf") if run.progress.step == 0 else 1.0)

    run = toy.train(toy.config(tmp_path, 3), each)
    assert run.progress.skipped == 1 and scales == [2.0**16, 2.0**15, 2.0**15]


def test_memory_is_the_most_that_was_taken_not_what_is_left(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    block = torch.ones(50_000_000)  # 200 MB
    held = psutil.Process().memory_info().rss / 1e9
    del block
    assert psutil.Process().memory_info().rss / 1e9 < held - 0.15
    assert memory() > held - 0.01


def test_tensorboard_gets_what_metrics_jsonl_has(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = toy.config(tmp_path, 4, "--run.report-to tensorboard --run.checkpointing-steps 2")
    with pytest.raises(SystemExit):
        toy.train(config, lambda run, loss: stop_at(run, 2, loss))
    toy.train(config)
    events = EventAccumulator(str(tmp_path / "logs")).Reload()
    lines = strict(tmp_path)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    for name in ("loss", "samples_per_second", "learning_rate", "memory_gb"):
        scalars = events.Scalars(name)
        assert [scalar.step for scalar in scalars] == [1, 2, 3, 4]
        found = torch.tensor([scalar.value for scalar in scalars])
        assert_close(found, torch.tensor([line[name] for line in lines]))


def stop_at(run, step: int, loss):
    if run.progress.step == step - 1 and not run.stop.number:
        os.kill(os.getpid(), signal.SIGTERM)
    return loss


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been_and_gives_the_signals_back(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    more = "--run.ema-decay 0.9 --run.gradient-accumulation-steps 2"
    with pytest.raises(SystemExit) as stopped:
        toy.train(toy.config(tmp_path / "cut", 7, more), lambda run, loss: stop_at(run, 3, loss))
    assert stopped.value.code == 143
    assert latest_checkpoint(tmp_path / "cut")[1] == 2  # it came in the third step
    assert signal.getsignal(signal.SIGTERM) is before
    cut = toy.train(toy.config(tmp_path / "cut", 7, more))
    whole = toy.train(toy.config(tmp_path / "whole", 7, more))
    assert toy.losses(tmp_path / "cut") == toy.losses(tmp_path / "whole")
    for one, other in zip(cut.parameters, whole.parameters, strict=True):
        assert one.equal(other)
    assert signal.getsignal(signal.SIGTERM) is before


def test_what_is_not_installed_is_refused_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("training.trackers.find_spec", lambda name: None)
    monkeypatch.setattr("training.optimizers.find_spec", lambda name: None)
    cases = {
        "--run.report-to wandb": "run.report_to: wandb is not installed; "
        "allowed: none, or wandb after `pip install wandb`\n",
        "--optim.name adamw8bit": "optim.name: adamw8bit needs bitsandbytes, which is not installed; "
        "allowed: adamw, or adamw8bit after `pip install bitsandbytes`\n",
    }
    for more, said in cases.items():
        with pytest.raises(SystemExit) as stopped:
            run_stage(toy.config(tmp_path, 1, more), pytest.fail)
        assert stopped.value.code == 2 and capsys.readouterr().err == said


def test_8_bit_adamw_learns_and_resumes_bit_for_bit(tmp_path):
    pytest.importorskip("bitsandbytes")
    more = "--width 64 --optim.name adamw8bit --optim.learning-rate 1e-2"
    whole = toy.train(toy.config(tmp_path / "whole", 12, more))
    toy.train(toy.config(tmp_path / "cut", 5, more))
    cut = toy.train(toy.config(tmp_path / "cut", 12, more))
    assert toy.losses(tmp_path / "whole") == toy.losses(tmp_path / "cut")
    assert all(a.equal(b) for a, b in zip(whole.parameters, cut.parameters, strict=True))
    states = [state["state1"].dtype for state in whole.optimizer.state.values()]
    assert torch.uint8 in states
    toy.train(toy.config(tmp_path / "full", 12, more.replace("adamw8bit", "adamw")))
    assert toy.losses(tmp_path / "whole")[-1] < toy.losses(tmp_path / "whole")[0]
    assert_close(toy.losses(tmp_path / "whole"), toy.losses(tmp_path / "full"), rtol=0.05, atol=0.01)


@dataclass(frozen=True)
class OtherConfig(toy.ToyConfig):
    """Another stage."""


def test_a_checkpoint_of_another_stage_or_of_other_parameters_is_refused(tmp_path, capsys):
    toy.train(toy.config(tmp_path, 2))
    other = parse(OtherConfig, ["--output-dir", str(tmp_path)])
    with pytest.raises(SystemExit) as stopped:
        run_stage(other, pytest.fail)
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and said.count("\n") == 1
    assert "holds a checkpoint with stage Toy, this run has Other; allowed: " in said
    with pytest.raises(ValueError, match=r"^output_dir: .* trained numbers 72, this run has 20; allowed: "):
        toy.train(toy.config(tmp_path, 3, "--width 4"))
    with pytest.raises(ValueError, match=r"^output_dir: .* run\.ema_decay 0\.0, this run has 0\.9"):
        toy.train(toy.config(tmp_path, 3, "--run.ema-decay 0.9"))
    AcceleratorState._reset_state()  # accelerate keeps the precision of a process's first run
    with pytest.raises(ValueError, match=r"^output_dir: .* run\.mixed_precision no, this run has bf16"):
        toy.train(toy.config(tmp_path, 3, "--run.mixed-precision bf16"))
    AcceleratorState._reset_state()


def test_a_checkpoint_that_does_not_say_its_precision_is_gone_on_from(tmp_path):
    """As those of older versions."""
    toy.train(toy.config(tmp_path, 2))
    manifest = latest_checkpoint(tmp_path)[0] / MANIFEST
    content = json.loads(manifest.read_text())
    del content["about"]["run.mixed_precision"]
    manifest.write_text(json.dumps(content))
    assert toy.train(toy.config(tmp_path, 3)).progress.step == 3


def test_a_real_process_shows_how_far_it_is_holds_its_folder_and_ends_with_143(tmp_path, capsys):
    flags = ["--run.max-train-steps", "1000000", "--run.checkpointing-steps", "20"]
    terminal, side = pty.openpty()
    termios.tcsetwinsize(side, (24, 150))
    command = [sys.executable, "-m", "tests.training.toy", "--output-dir", str(tmp_path), *flags]
    with subprocess.Popen(command, stderr=side) as process:
        os.close(side)
        seen = b""
        until = time.monotonic() + 120
        while time.monotonic() < until and not (b"sample/s, step" in seen and newest(tmp_path)):
            if select.select([terminal], [], [], 0.5)[0]:
                seen += os.read(terminal, 4096)
        with pytest.raises(SystemExit) as refused:
            run_stage(toy.config(tmp_path, 10), pytest.fail)
        step = newest(tmp_path)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 143
    os.close(terminal)
    said = capsys.readouterr().err
    assert refused.value.code == 2 and said.count("\n") == 1
    assert said.startswith("output_dir: ") and f"is in use by process {process.pid} on " in said
    assert re.search(rb"\[\d\d:\d\d<[\d:]+, +[\d.]+k?sample/s, step \d+, \d+\.\d GB\]", seen)
    assert latest_checkpoint(tmp_path)[1] > step
    with output_folder.claimed(tmp_path):
        pass


def newest(folder: Path) -> int:
    return max((int(path.name[-8:]) for path in folder.glob("checkpoint-*")), default=0)


@pytest.mark.slow
def test_a_signal_to_one_of_two_processes_stops_both_with_one_whole_checkpoint(tmp_path):
    flags = ["--run.max-train-steps", "1000000", "--run.checkpointing-steps", "50"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    stage = ["-m", "tests.training.toy", "--output-dir", str(tmp_path), *flags]
    with subprocess.Popen([*launch, *stage], stderr=subprocess.PIPE, text=True) as group:
        until = time.monotonic() + 200
        while time.monotonic() < until and not newest(tmp_path):
            time.sleep(0.2)
        before = newest(tmp_path)
        os.kill(json.loads((tmp_path / output_folder.HOLDER).read_text())["pid"], signal.SIGTERM)
        said = group.communicate(timeout=100)[1]
    assert group.returncode != 0 and "exitcode  : 143" in said
    path, step = latest_checkpoint(tmp_path)
    assert step > before and not list(tmp_path.glob(".tmp*"))
    assert {file.name for file in path.glob("random_states_*")} == {f"random_states_{n}.pkl" for n in (0, 1)}


def test_trackio_gets_the_losses(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read as it is imported
    pytest.importorskip("trackio")
    for steps in (1, 3):
        toy.train(toy.config(tmp_path / "run", steps, "--run.report-to trackio"))
    with contextlib.closing(sqlite3.connect(tmp_path / "trackio/altdiffusion.db")) as base:
        rows = base.execute("select run_name, step, metrics from metrics order by step").fetchall()
    assert [(name, step) for name, step, _ in rows] == [("run", 1), ("run", 2), ("run", 3)]
    assert [json.loads(metrics)["loss"] for *_, metrics in rows] == toy.losses(tmp_path / "run")
