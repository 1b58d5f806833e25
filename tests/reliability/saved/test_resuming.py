"""A run that was cut, wherever it was, goes on as if it had not been: losses, weights, average, optimizer."""

import signal
from dataclasses import replace
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState
from datasets import config as datasets_config

from tests.reliability.saved.trying import tried
from tests.training.stages import Stage, differences, make, state
from training.loop import Run

#: Two epochs of three steps.
STEPS = 6
#: The first step, in an epoch's middle, its boundary, one past it, and the last one.
CUTS = (1, 2, 3, 4, STEPS)
#: Of a machine of one core, which the two workers are too many for.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
CASE = "D5 resume bit for bit"
NAMES = ("autoencoder", "contrast", "distill", "kv", "unet", "lora", "adapter")


@pytest.fixture(scope="module")
def stages(tmp_path_factory, teacher, drawing) -> dict[str, Stage]:
    """The tower that is trained has dropout: its draws have to come back too."""
    folder = tmp_path_factory.mktemp("stages")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets_config, "HF_DATASETS_CACHE", folder / "cache")
        yield make(folder, teacher, drawing / "altclip", drawing)


@pytest.fixture(scope="module")
def whole(stages, tmp_path_factory):
    """The folder of the uninterrupted run, trained once for each stage and accumulation."""
    runs: dict[tuple[str, int], Path] = {}

    def folder(name: str, passes: int) -> Path:
        if (name, passes) not in runs:
            runs[name, passes] = tmp_path_factory.mktemp(f"{name}-{passes}")
            more = f"--run.gradient-accumulation-steps {passes}"
            stages[name].train(stages[name].parsed(runs[name, passes], STEPS, more))
        return runs[name, passes]

    return folder


def cut_and_go_on(stage: Stage, folder: Path, cut: int, passes: int, workers: int, in_pass: int = 0) -> None:
    """Sends the run SIGTERM after step `cut` and `in_pass` passes of the next; then the same command."""
    config = stage.parsed(
        folder, STEPS, f"--run.gradient-accumulation-steps {passes} --run.workers {workers}"
    )
    step = Run.step

    def stepped(run: Run, loss) -> None:
        step(run, loss)
        if (run.progress.step, run.part) == (cut, in_pass):
            signal.raise_signal(signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as stopped:
        patch.setattr(Run, "step", stepped)
        stage.train(config)
    assert stopped.value.code == 128 + signal.SIGTERM
    assert (folder / f"checkpoint-{cut:08d}").is_dir() and not (folder / "model").exists()
    stage.train(config)


@pytest.mark.parametrize(
    "name, cut, passes, workers",
    [
        ("autoencoder", 2, 4, 0),
        ("contrast", 3, 4, 0),
        ("distill", 1, 1, 0),
        ("kv", 4, 1, 2),
        ("unet", 3, 4, 0),
        ("lora", STEPS, 1, 0),
        ("adapter", 2, 1, 0),
    ],
)
def test_a_cut_run_goes_on_bit_for_bit(stages, whole, tmp_path, tally, name, cut, passes, workers):
    count = tally(CASE)
    with tried(count, f"{name} cut at {cut}"):
        cut_and_go_on(stages[name], tmp_path, cut, passes, workers)
        assert differences(state(whole(name, passes), STEPS), state(tmp_path, STEPS)) == []
        assert (tmp_path / "model").is_dir()
    count.check(1)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("passes", [1, 4])
@pytest.mark.parametrize("name", NAMES)
def test_every_stage_cut_anywhere_goes_on_bit_for_bit(stages, whole, tmp_path, tally, name, passes, workers):
    count = tally(CASE)
    for cut in CUTS:
        folder = tmp_path / str(cut)
        with tried(count, f"{name} cut at {cut}, {passes} passes, {workers} workers"):
            cut_and_go_on(stages[name], folder, cut, passes, workers)
            assert differences(state(whole(name, passes), STEPS), state(folder, STEPS)) == []
    count.check(len(CUTS))


@pytest.mark.slow
@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("name", ["contrast", "distill", "unet"])
def test_a_run_in_bfloat16_goes_on_bit_for_bit(stages, tmp_path, tally, name, cut):
    count, half = tally(CASE), "--run.mixed-precision bf16"
    stage = replace(stages[name], flags=f"{stages[name].flags} {half}")
    AcceleratorState._reset_state()  # whose precision is that of the first run
    with tried(count, f"{name} in bfloat16 cut at {cut}"):
        stage.train(stage.parsed(tmp_path / "whole", STEPS))
        cut_and_go_on(stage, tmp_path / "cut", cut, 1, 0)
        assert differences(state(tmp_path / "whole", STEPS), state(tmp_path / "cut", STEPS)) == []
    AcceleratorState._reset_state()
    count.check(1)


def test_a_step_that_was_cut_between_its_passes_begins_again(stages, whole, tmp_path, tally):
    count = tally(CASE)
    with tried(count, "unet cut in a step"):
        cut_and_go_on(stages["unet"], tmp_path, 2, 4, 0, in_pass=3)
        assert differences(state(whole("unet", 4), STEPS), state(tmp_path, STEPS)) == []
    count.check(1)


def test_a_difference_of_one_bit_would_be_found(stages, whole):
    one, other = (state(whole("unet", 4), STEPS) for _ in range(2))
    assert differences(one, other) == []
    moments = other["optimizer"]["state"][0]["exp_avg"]
    moments.view(-1)[0] = moments.view(-1)[0].nextafter(moments.new_tensor(1.0))
    other["custom_checkpoint_2"]["shadow_params"][1].view(-1)[0] += 1
    assert differences(one, other) == ["/optimizer/state/0/exp_avg", "/custom_checkpoint_2/shadow_params/1"]
