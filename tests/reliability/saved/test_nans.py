"""NaN in the loss, in a gradient or in the latents, once, often and last: left out, counted, and the newest
checkpoint stays finite. How the loop does it is in tests/training/test_loop.py.
"""

import itertools

import pytest
import torch
from safetensors.torch import load_file

from tests.reliability.saved.trying import tried
from tests.training import toy
from tests.training.test_loop import spoilt, strict
from training.checkpoints import latest_checkpoint
from training.loop import Diverged, Run

STEPS = 8
#: Steps that are spoilt: one, some in a row, too many of them.
WHERE = {"one": range(3, 4), "four": range(2, 6), "five": range(2, 7), "the last": range(7, 8)}


def trained(folder, kind: str, steps: range, monkeypatch: pytest.MonkeyPatch) -> Run:
    config = toy.config(folder, STEPS, "--run.ema-decay 0.9 --run.checkpointing-steps 1")
    if kind != "latents":
        return toy.train(config, spoilt(kind, steps))
    noise = Run.noise

    def infinite(run: Run, *shape: int) -> torch.Tensor:
        drawn = noise(run, *shape)
        return drawn / 0 if run.progress.step in steps else drawn

    with monkeypatch.context() as patch:
        patch.setattr(Run, "noise", infinite)
        return toy.train(config)


def test_what_is_no_number_is_left_out_and_counted(tmp_path, tally, monkeypatch):
    count = tally("D6 NaN in loss, gradient, latents")
    for kind, (name, steps) in itertools.product(("loss", "gradient", "latents"), WHERE.items()):
        folder = tmp_path / f"{kind}-{name}"
        with tried(count, f"{kind}, {name}", "refused" if name == "five" else "right"):
            if name == "five":
                with pytest.raises(Diverged, match=r"^5 steps in a row were not finite, up to step 6; "):
                    trained(folder, kind, steps, monkeypatch)
            else:
                run = trained(folder, kind, steps, monkeypatch)
                assert (run.progress.step, run.progress.skipped) == (STEPS, len(steps))
                assert strict(folder)[-1]["skipped"] == len(steps)
            path, step = latest_checkpoint(folder)
            assert step == (6 if name == "five" else STEPS)
            assert all(
                torch.isfinite(value).all() for value in load_file(path / "model.safetensors").values()
            )
            average = torch.load(path / "custom_checkpoint_2.pkl")["shadow_params"]
            assert all(torch.isfinite(value).all() for value in average)
    count.check(12)
