"""Times the models on a GPU: random weights of the published shapes, and what share of the GPU they use.

    python -m bench.gpu [--rounds 10] [--compile] [-o report.json]

One denoising step with guidance of 512 x 512 pixels (1 prompt and 8), a decoding, 64 prompts of 13 tokens and
64 pictures of 224, in bf16: as PyTorch runs them, after `pipeline.optimize()`, and with `--compile` after
that. Shares are of the matrix products in bf16 that the same run measured (bench/limits.py). Host
syncs are counted in the denoising loop, where each would make the GPU wait. What is aimed at on an H200
stands beside. Without a GPU it runs all of it on the CPU with tiny shapes, to show that it runs; the figures
mean nothing and the report says so.
"""

import copy
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from altdiffusion import checkpoints
from altdiffusion.attention import optimize
from altdiffusion.pipelines import AltDiffusionPipeline
from bench import limits
from bench.openvino import PUBLISHED, TINY, random_part
from bench.published_sizes import SCHEDULER, VAE
from bench.report import parser, tell

#: A second, on an H200: what the design aims at.
GOALS = {"step, 1 prompt": 140, "step, 8 prompts": 27.5, "texts": 30_000 / 64, "pictures": 2_400 / 64}
NOTHING = "DRY RUN on the CPU with tiny shapes: there is no GPU here, and these figures mean nothing"
_VAE = {**VAE, "block_out_channels": [32, 32, 32, 32], "norm_num_groups": 8}


def models(shape: dict[str, dict], vae: dict, device: torch.device) -> dict[str, Any]:
    built = {}
    for name, config in shape.items():
        stock, part = random_part(name, config)
        built[name] = checkpoints.build(type(stock), part, Path("random"), dtype=torch.bfloat16).to(device)
    torch.manual_seed(0)
    return built | {"vae": torch.nn.Module.to(AutoencoderKL(**vae).eval(), device, torch.bfloat16)}


def jobs(built: dict[str, Any], pixels: int, many: int, device: torch.device) -> dict[str, Callable[[], Any]]:
    """What is timed, on inputs that lie on the device."""

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, device=device, dtype=torch.bfloat16)

    unet, side = built["unet"], pixels // 8
    width = unet.config.cross_attention_dim

    def step(prompts: int) -> Callable[[], Any]:
        sample, states = random(2 * prompts, 4, side, side), random(2 * prompts, 77, width)
        time = torch.tensor(501, device=device)
        return lambda: unet(sample, time, states)

    ids = torch.randint(4, built["text_model"].config.vocab_size, (many, 13), device=device)
    image_side = built["vision_model"].config.image_size
    pictures, latents = random(many, 3, image_side, image_side), random(1, 4, side, side)
    return {
        "step, 1 prompt": step(1),
        "step, 8 prompts": step(8),
        "decoding": lambda: built["vae"].decode(latents),
        "texts": lambda: built["text_model"](ids),
        "pictures": lambda: built["vision_model"](pixel_values=pictures),
    }


def pipeline_of(built: dict[str, Any], pixels: int) -> AltDiffusionPipeline:
    """Enough of a pipeline to draw from embeddings."""
    pipeline = AltDiffusionPipeline(
        unet=built["unet"], vae=built["vae"], text_encoder=None, tokenizer=None, safety_checker=None,
        scheduler=DPMSolverMultistepScheduler.from_config(SCHEDULER), feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    pipeline.unet.register_to_config(sample_size=pixels // 8)
    return pipeline


def host_syncs(pipeline: AltDiffusionPipeline, steps: int) -> int | None:
    """Times that the host waited for the GPU while it drew, beyond the first step; None without a GPU."""
    if pipeline.device.type != "cuda":
        return None
    states = torch.zeros(1, 77, pipeline.unet.config.cross_attention_dim, device="cuda", dtype=torch.bfloat16)
    counts = []
    for number in (1, steps):
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            pipeline(
                prompt_embeds=states, negative_prompt_embeds=states,
                num_inference_steps=number, output_type="latent",
            )  # fmt: skip
            torch.cuda.set_sync_debug_mode("default")
        counts.append(sum("synchroniz" in str(one.message) for one in seen))
    return counts[1] - counts[0]


@torch.no_grad()
def measure(device: torch.device, rounds: int, compile: bool, dry: bool) -> dict[str, Any]:
    pixels, many = (64, 2) if dry else (512, 64)
    found = limits.measure(device, 256 if dry else 8192, 16 if dry else 2048)
    built = models(TINY if dry else PUBLISHED, _VAE if dry else VAE, device)
    plain = jobs(copy.deepcopy(built), pixels, many, device)
    pipeline = pipeline_of(built, pixels)
    syncs = host_syncs(pipeline, 10)
    chosen = optimize(pipeline, width=pixels, height=pixels, compile=compile)
    ours = jobs(built, pixels, many, device)
    rows = []
    for name, call in plain.items():
        with FlopCounterMode(display=False) as counter:
            call()
        flops = counter.get_total_flops()
        for way, run in (("PyTorch", call), ("optimized", ours[name])):
            seconds = limits.seconds_of(run, device, rounds)
            share = flops / seconds / found["gemm bf16"]
            rows.append(
                {"job": name, "way": way, "seconds": seconds, "share": share, "goal": GOALS.get(name)}
            )
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    versions = {package: version(package) for package in ("torch", "diffusers", "transformers")}
    return {
        "dry": dry,
        "device": name,
        "versions": versions | {"cuda": torch.version.cuda},
        "limits": found,
        "optimized": vars(chosen),
        "host_syncs_of_9_steps": syncs,
        "rows": rows,
    }


def table(report: dict[str, Any]) -> str:
    lines = [f"{NOTHING}\n"] if report["dry"] else []
    lines += ["| job | way | ms | a second | share of the peak |", "|---|---|---|---|---|"]
    for row in report["rows"]:
        aim = None if report["dry"] or row["way"] == "PyTorch" else GOALS.get(row["job"])
        goal = f" (H200 goal: {aim:g})" if aim else ""
        rate = f"{1 / row['seconds']:.1f}{goal}"
        lines.append(
            f"| {row['job']} | {row['way']} | {1000 * row['seconds']:.2f} | {rate} | {row['share']:.2f} |"
        )
    chosen, versions = report["optimized"], report["versions"]
    kernels = ", ".join(f"{name} {1e3 * seconds:.2f} ms" for name, seconds in chosen["seconds"].items())
    syncs = report["host_syncs_of_9_steps"]
    lines += [
        "",
        f"- {report['device']}; {', '.join(f'{name} {number}' for name, number in versions.items())}",
        f"- limits measured in this run: {limits.sentence(report['limits'])}",
        f"- attention: {chosen['attention']} ({kernels}); compiled: {chosen['compiled']}",
        f"- host syncs in nine steps: {'not counted' if syncs is None else syncs}",
    ]
    return "\n".join([*lines, ""])


def main() -> None:
    options = parser(__doc__, write=False)
    options.add_argument("--rounds", type=int, default=10)
    options.add_argument("--compile", action="store_true", help="also compile the UNet's blocks")
    options.add_argument("--dry", action="store_true", help="tiny shapes on the CPU, even beside a GPU")
    arguments = options.parse_args()
    dry = arguments.dry or not torch.cuda.is_available()
    device = torch.device("cpu" if dry else "cuda")
    report = measure(device, arguments.rounds, arguments.compile, dry)
    tell(report, "gpu", None, table, arguments)


if __name__ == "__main__":
    main()
