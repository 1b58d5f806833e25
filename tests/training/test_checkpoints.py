"""Checkpoints under damage, and configuration. Kills are in tests/reliability/saved."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from training.checkpoints import MANIFEST, damaged, latest_checkpoint, save_checkpoint
from training.config import OptimConfig, RunConfig, parse, save


def write(content: bytes, files: int = 3):
    def write_into(stage: Path) -> None:
        for n in range(files):
            (stage / f"part-{n}.bin").write_bytes(content)

    return write_into


def test_the_newest_checkpoints_are_kept_and_the_newest_is_found(tmp_path):
    for step in (10, 20, 30):
        save_checkpoint(tmp_path, step, write(b"x"), keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-00000020", "checkpoint-00000030"]
    assert latest_checkpoint(tmp_path) == (tmp_path / "checkpoint-00000030", 30)


def test_a_run_that_starts_anew_before_damaged_checkpoints_keeps_its_own(tmp_path):
    for step in (400, 500):
        (save_checkpoint(tmp_path, step, write(b"x"), keep=2) / MANIFEST).unlink()
    assert latest_checkpoint(tmp_path) is None
    for step in (100, 200):
        save_checkpoint(tmp_path, step, write(b"x"), keep=2)
        assert latest_checkpoint(tmp_path) == (tmp_path / f"checkpoint-{step:08d}", step)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-00000100", "checkpoint-00000200"]


@pytest.mark.parametrize("name", ["part-0.bin", "part-2.bin", MANIFEST])
@pytest.mark.parametrize("harm", ["flip", "cut", "remove"])
def test_every_damaged_file_is_named_and_the_previous_checkpoint_used(tmp_path, name, harm, caplog):
    save_checkpoint(tmp_path, 1, write(b"first" * 100), keep=2)
    newest = save_checkpoint(tmp_path, 2, write(b"second" * 100), keep=2)
    file = newest / name
    content = file.read_bytes()
    match harm:
        case "flip":
            file.write_bytes(bytes([content[0] ^ 255]) + content[1:])
        case "cut":
            file.write_bytes(content[: len(content) // 2])
        case "remove":
            file.unlink()
    assert name in (damaged(newest) or "")
    assert latest_checkpoint(tmp_path) == (tmp_path / "checkpoint-00000001", 1)
    assert "checkpoint-00000002 is passed over" in caplog.text


def test_a_failing_save_leaves_the_previous_checkpoint_and_no_rest(tmp_path):
    save_checkpoint(tmp_path, 1, write(b"good"), keep=2)

    def fail(stage: Path) -> None:
        (stage / "half").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(tmp_path, 2, fail, keep=2)
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-00000001"]


@dataclass(frozen=True)
class Toy:
    """A stage."""

    output_dir: Path
    languages: tuple[str, ...] = ()
    optim: OptimConfig = field(default_factory=OptimConfig)
    run: RunConfig = field(default_factory=RunConfig)


def test_a_saved_configuration_parses_back_to_itself(tmp_path):
    argv = ["--output-dir", "a folder/ü", "--languages", "en", "zh", "--optim.learning-rate", "1e-5"]
    config = parse(Toy, argv)
    save(config, tmp_path / "config.yaml")
    assert parse(Toy, ["--config", str(tmp_path / "config.yaml")]) == config
    assert config.optim.learning_rate == 1e-5


def test_the_command_line_wins_over_the_recipe(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("output_dir: x\nrun: {seed: 1}\n")
    assert parse(Toy, ["--config", str(recipe), "--run.seed", "2"]).run.seed == 2


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--config", "nowhere.yaml"], "config: nowhere.yaml is not a file"),
        (
            ["--output-dir", "x", "--run.checkpoints-total-limit", "1"],
            "checkpoints_total_limit: 1 is below 2",
        ),
        (["--output-dir", "x", "--optim.learning-rate", "3"], "learning_rate: 3.0 is outside (0, 1)"),
        (
            ["--output-dir", "x", "--run.batch-size", "5", "--run.gradient-accumulation-steps", "2"],
            "batch_size: 5",
        ),
    ],
)
def test_a_bad_configuration_ends_with_2_and_says_what_is_wrong(argv, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        parse(Toy, argv)
    assert stopped.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())
