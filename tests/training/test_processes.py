"""Several processes, and several passes: the same step as one process makes at once."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from datasets import config as datasets_config
from safetensors.torch import load_file
from torch.testing import assert_close

from tests.training.stages import Stage, losses, make
from training.checkpoints import latest_checkpoint
from training.config import save

STEPS = 3
LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
#: Adam moves a weight by this much a step however small its gradient is, and so rounding too.
LEARNING_RATE = 1e-4
MORE = f"--optim.schedule constant --optim.learning-rate {LEARNING_RATE}"
#: fully_shard takes no single numbers, and CLIP's `logit_scale` is one.
SHARDED = ("autoencoder", "distill", "kv", "unet", "lora", "adapter")


@pytest.fixture(scope="module")
def stages(tmp_path_factory, teacher, altclip, drawing) -> dict[str, Stage]:
    """Without dropout, whose draws are each process's own."""
    folder = tmp_path_factory.mktemp("stages")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets_config, "HF_DATASETS_CACHE", folder / "cache")
        yield make(folder, teacher, altclip, drawing)


@pytest.fixture(scope="module")
def one(stages, tmp_path_factory):
    """The folder of a stage's run in one process and one pass, trained once."""
    runs: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in runs:
            runs[name] = tmp_path_factory.mktemp(f"one-{name}")
            stages[name].train(stages[name].parsed(runs[name], STEPS, MORE))
        return runs[name]

    return folder


def together(stages: dict[str, Stage], folder: Path, names, *options: str, steps: int = STEPS) -> None:
    """Trains the named stages in two processes, into `folder`/name."""
    folder.mkdir(exist_ok=True)
    arguments = []
    for name in names:
        save(stages[name].parsed(folder / name, steps, MORE), folder / f"{name}.yaml")
        arguments.append(f"{stages[name].module}={folder / name}.yaml")
    command = [*LAUNCH, "-m", "tests.training.together", *options, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=800)
    assert done.returncode == 0, done.stderr[-3000:]


def assert_same(one: Path, other: Path, tolerance: float) -> None:
    """Losses to the tolerance, exported weights to a tenth of a step, but for one in a thousand."""
    assert_close(losses(other), losses(one), rtol=tolerance, atol=tolerance)
    files = sorted((one / "model").rglob("*.safetensors"))
    assert files
    for file in files:
        before, after = load_file(file), load_file(other / file.relative_to(one))
        assert before.keys() == after.keys()
        for name in before:
            # A key's bias shifts all logits of a query alike: its gradient is rounding, which Adam blows up.
            if not name.endswith(("key.bias", "k_proj.bias", "to_k.bias")):
                moved = (after[name] - before[name]).abs() > 0.1 * LEARNING_RATE
                assert moved.float().mean() <= 0.001, name


@pytest.mark.parametrize("name", ["distill", "kv", "unet", "lora", "contrast", "adapter"])
def test_accumulated_passes_are_one_big_batch(stages, one, tmp_path, name):
    passes = f"{MORE} --run.gradient-accumulation-steps 4"
    stages[name].train(stages[name].parsed(tmp_path, STEPS, passes))
    assert_same(one(name), tmp_path, 1e-6)


def test_two_processes_are_one_with_the_same_batch(stages, one, tmp_path):
    names = ("distill", "kv")
    together(stages, tmp_path / "two", names)
    for name in names:
        assert_same(one(name), tmp_path / "two" / name, 1e-5)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_are_one_in_every_stage(stages, one, tmp_path):
    together(stages, tmp_path / "two", stages)
    for name in stages:
        assert_same(one(name), tmp_path / "two" / name, 1e-5)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_shared_out_weights_train_save_resume_and_export_as_one_process_does(stages, one, tmp_path):
    """FSDP2 by our own file, really on two processes."""
    together(stages, tmp_path / "cut", SHARDED, "--fsdp2", steps=1)
    for name in SHARDED:
        found = latest_checkpoint(tmp_path / "cut" / name)
        assert found is not None and found[1] == 1
        slices = list((found[0] / "pytorch_model_fsdp_0").glob("*.distcp"))
        assert len(slices) == 2, "each process writes its own"
    together(stages, tmp_path / "cut", SHARDED, "--fsdp2")
    for name in SHARDED:
        assert len(losses(tmp_path / "cut" / name)) == STEPS
        assert_same(one(name), tmp_path / "cut" / name, 1e-5)


def stopped_by(stages: dict[str, Stage], folder: Path, stop) -> tuple[int, str]:
    """Starts an endless run on two processes, calls `stop(torchrun, its workers)`, returns how it ended."""
    endless = "--run.max-train-steps 100000 --run.checkpointing-steps 2"
    save(stages["kv"].parsed(folder / "run", 1, endless), folder / "config.yaml")
    command = [*LAUNCH, "-m", "training.text_to_image", "--config", str(folder / "config.yaml")]
    with (folder / "error").open("w+") as error:
        job = subprocess.Popen(command, stderr=error, stdout=error, env=ENVIRONMENT)
        try:
            while not (folder / "run/metrics.jsonl").is_file() or len(losses(folder / "run")) < 4:
                assert job.poll() is None, (folder / "error").read_text()[-3000:]
                time.sleep(0.2)
            stop(job, psutil.Process(job.pid).children())
            code = job.wait(timeout=100)
        finally:
            job.kill()
    return code, (folder / "error").read_text()


@pytest.mark.slow
def test_when_one_process_dies_the_others_end_and_the_checkpoint_stands(stages, tmp_path):
    code, _ = stopped_by(stages, tmp_path, lambda _, workers: workers[1].kill())
    assert code != 0
    assert latest_checkpoint(tmp_path / "run") is not None


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_at_the_same_step(stages, tmp_path):
    """As it is when a batch system's signal reaches them at different times: both save, and none waits."""
    code, error = stopped_by(stages, tmp_path, lambda _, workers: workers[1].send_signal(signal.SIGTERM))
    assert code != 0
    assert "exitcode  : 143" in error
    found = latest_checkpoint(tmp_path / "run")
    assert found is not None and found[1] == len(losses(tmp_path / "run"))
