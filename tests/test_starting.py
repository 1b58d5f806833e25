"""A picture from the command line costs little beside its libraries: counted in modules, not in seconds."""

import gc
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from altdiffusion.runtime import limit_threads
from altdiffusion.starting import collector_paused

ROOT = Path(__file__).parent.parent
#: What the command line, the checks and the schedulers' kin come to; 190 at the time of writing.
MODULES_BESIDE_DIFFUSERS = 220
#: Of extras, of other tasks, and of plots: each would be half a second or more.
NOT_FOR_A_PICTURE = {
    *("altdiffusion.guided", "altdiffusion.retrieval", "altdiffusion.evaluation", "datasets", "gradio"),
    *("matplotlib", "openvino", "pandas", "pyarrow", "qdrant_client", "ray", "scipy", "sklearn"),
    *("torchmetrics", "torchvision"),
}
DRAW = """
import json, sys
import torch
from diffusers import StableDiffusionPipeline
before = set(sys.modules)
from altdiffusion.cli import main
code = main(["generate", "a lobster", "--steps", "1", "--model", sys.argv[1], "-o", sys.argv[2]])
print(json.dumps([code, sorted(set(sys.modules) - before)]))
"""


def test_drawing_imports_little_beside_the_stock_pipeline(shared_folder: Path, tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-c", DRAW, str(shared_folder), str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    code, added = json.loads(done.stdout.splitlines()[-1])
    assert code == 0, done.stderr
    assert not NOT_FOR_A_PICTURE & set(added)
    assert len(added) <= MODULES_BESIDE_DIFFUSERS, added


def test_the_collector_is_paused_and_goes_on_also_after_an_error():
    with pytest.raises(KeyError), collector_paused():
        assert not gc.isenabled()
        with collector_paused():
            pass
        assert not gc.isenabled()
        raise KeyError
    assert gc.isenabled()


def test_a_small_model_gets_one_thread_and_a_large_one_keeps_its_own():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with torch.device("meta"):
            large = torch.nn.Linear(10_000, 10_000)
        limit_threads(large.to_empty(device="cpu"))
        assert torch.get_num_threads() == 2
        limit_threads(torch.nn.Linear(2, 2))
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
