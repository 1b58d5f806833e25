"""Memory that is used up, at any step and for real: a line says what to lower, and the next try is fine."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from altdiffusion.generation import generate
from altdiffusion.requests import BadRequest, GenerateRequest
from tests.reliability.saved.trying import tried
from tests.training import toy
from training.checkpoints import damaged, latest_checkpoint
from training.stage import run_stage

STEPS = 4
#: What runs out where: a device's memory, the allocator's, Python's.
ERRORS = {
    "cuda": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
    "cpu": lambda: RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
    "python": MemoryError,
}


def drawn(pipeline, count: int, batch: int) -> list[bytes]:
    request = GenerateRequest.build(prompt="a red cat", seed=7, steps=STEPS, count=count)
    return [picture.image.tobytes() for picture in generate(pipeline, request, batch_size=batch)]


@pytest.mark.parametrize("kind", ERRORS)
def test_a_step_that_finds_no_memory_names_what_to_lower(shared_pipeline, tally, kind):
    """In every step, of one picture and of two at once."""
    count, expected = tally("C7 out of memory at a step"), drawn(shared_pipeline, 1, 1)
    for step in range(STEPS):
        for at_once in (1, 2):
            calls = 0

            def fail(*_: object, step: int = step) -> None:
                nonlocal calls
                calls += 1
                if calls == step + 1:
                    raise ERRORS[kind]()

            hook = shared_pipeline.unet.register_forward_hook(fail)
            lower = "size" if at_once == 1 else "size, count or batch"
            said = rf"^size: 64x64(, 2 pictures at once,)? does not fit into the memory .*; lower {lower}$"
            with tried(count, f"{kind} at step {step}, {at_once} at once", "refused"):
                try:
                    with pytest.raises(BadRequest, match=said):
                        drawn(shared_pipeline, at_once, at_once)
                finally:
                    hook.remove()
                assert drawn(shared_pipeline, 1, 1) == expected
    count.check(2 * STEPS)


LIMITED = """
import resource, sys
from pathlib import Path
from altdiffusion import AltDiffusionPipeline
from altdiffusion.cli import main

model = ["--model", sys.argv[1], "--steps", "1", "--preset", "exact", "--seed", "7"]
assert main(["generate", "a red cat", "-o", "before.png", *model]) == 0
pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + 100_000_000
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for size in ("2048", "2048x1024", "1536"):
    print("code", main(["generate", "a red cat", "-o", "large.png", "--size", size, *model]), file=sys.stderr)
print("after", main(["generate", "a red cat", "-o", "after.png", *model]), file=sys.stderr)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_process_with_too_little_memory_says_so_and_goes_on(shared_folder, tmp_path, tally):
    count = tally("C7 a real limit of memory")
    command = [sys.executable, "-c", LIMITED, str(shared_folder)]
    root = Path(__file__).parents[3]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=250, env={**environment(root)}
    )
    lines = done.stderr.splitlines()
    codes = [line for line in lines if line.startswith("code ")]
    told = [line for line in lines if re.match(r"(size|memory): .*lower ", line)]
    for number in range(3):
        with tried(count, f"limit {number}", "refused"):
            assert codes[number] == "code 2" and len(told) == 3, done.stderr[-1500:]
            assert "Traceback" not in done.stderr and not (tmp_path / "large.png").exists()
    with tried(count, "after it"):
        assert "after 0" in lines, done.stderr[-1500:]
        assert (tmp_path / "after.png").read_bytes() == (tmp_path / "before.png").read_bytes()
    count.check(4)


def environment(root: Path) -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}


def test_a_training_that_finds_no_memory_names_its_batch_and_goes_on_later(tmp_path, tally, capsys):
    count = tally("C7 out of memory in training")
    for step in (0, 1, 3):
        folder = tmp_path / str(step)

        def each(run, loss, step: int = step):
            if run.progress.step == step:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return loss

        config = toy.config(folder, 4, "--run.checkpointing-steps 1")
        with tried(count, f"step {step}", "refused"):
            with pytest.raises(SystemExit) as stopped:
                run_stage(config, lambda config, each=each: toy.train(config, each))
            said = capsys.readouterr().err
            assert stopped.value.code == 1 and said.count("\n") == 1
            assert said.startswith(
                "run.batch_size: 4 in 1 passes does not fit into the memory; lower it, or "
            )
            found = latest_checkpoint(folder)
            assert (found is None) == (step == 0) and (found is None or damaged(found[0]) is None)
            assert toy.train(config).progress.step == 4
    count.check(3)
