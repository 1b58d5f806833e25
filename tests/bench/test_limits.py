import pytest
import torch

from bench import __main__ as benches
from bench import gpu, limits, openvino, startup

CPU = torch.device("cpu")


def test_what_is_measured_is_what_a_machine_can_do():
    found = limits.measure(CPU, size=128, megabytes=4)
    assert found.keys() == {"gemm fp32", "gemm bf16", "bandwidth"}
    assert all(10**6 < value < 10**17 for value in found.values())
    assert (
        limits.sentence({"gemm bf16": 217e9, "bandwidth": 28e9}) == "gemm bf16 217 GFLOP/s, bandwidth 28 GB/s"
    )


def test_the_bench_of_a_gpu_runs_dry_without_one_and_says_so():
    report = gpu.measure(CPU, rounds=1, compile=False, dry=True)
    assert {row["job"] for row in report["rows"]} >= gpu.GOALS.keys()
    assert all(row["seconds"] > 0 and row["share"] > 0 for row in report["rows"])
    text = gpu.table(report)
    assert text.startswith("DRY RUN") and "H200 goal" not in text
    assert "H200 goal: 140" in gpu.table({**report, "dry": False})


def test_start_up_is_told_against_the_imports_and_the_stock_script():
    rows = [("imports", 5.0), ("script", 6.5), ("help", 0.3), ("exact", 5.85), ("ours", 5.2)]
    report = {
        "command": "python -m bench.startup",
        "alone": 0.5,
        "rounds": 5,
        "rows": [{"way": way, "cpu_s": seconds, "wall_s": seconds} for way, seconds in rows],
        "made with": dict.fromkeys(("commit", "machine", "torch", "minutes"), "x"),
    }
    text = startup.table(report)
    assert "ours is +0.20 s from the imports alone (wanted: at most +3) and 0.80 of" in text
    assert "0.90 with as many steps" in text and "0.50 s by the clock" in text


def test_every_part_that_is_gathered_has_a_module():
    assert {"startup", "encode", "training", "search", "openvino", "gpu"} <= set(benches.known())


def test_shapes_of_the_openvino_bench_are_the_published_ones():
    counts = {}
    for name, config in openvino.PUBLISHED.items():
        with torch.device("meta"), pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.Tensor, "normal_", lambda self, *rest, **more: self)
            counts[name] = sum(p.numel() for p in openvino.random_part(name, config)[0].parameters()) / 1e6
    assert counts == pytest.approx({"unet": 859.5, "vision_model": 303.2, "text_model": 560.7}, abs=1.5)
