"""Training steps by PyTorch's fused attention and by plain products, in bf16 on a CPU, one thread.

    python -m bench.attending [--rounds 7] [--batch 64] [-o report.json] [--write]

The bundled UNet and towers, forth and back under autocast, and attention alone at the shapes of this
UNet and of the published one. The ways take turns; seconds are medians of CPU time.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from altdiffusion import AltCLIP, AltDiffusionPipeline
from bench.report import Start, origin, parser, tell
from bench.turns import median_seconds
from training.attending import PlainWhereShort, attend_in_clip

WAYS = ("fused", "plain where short")
#: (samples, heads, queries, keys, width) of the emoji UNet, by block, then of Stable Diffusion's at 512 px.
SHAPES = ((64, 2, 256, 256, 32), (64, 2, 256, 12, 32), (64, 4, 64, 64, 32), (64, 4, 64, 12, 32))
SHAPES += ((1, 8, 4096, 4096, 40), (1, 8, 4096, 77, 40), (4, 8, 1024, 1024, 80), (4, 8, 1024, 77, 80))
SHAPES += ((8, 8, 256, 256, 160), (8, 8, 256, 77, 160))


def forth_and_back(call: Callable[[], Tensor], parameters: list[Tensor]) -> Callable[[], None]:
    def step() -> None:
        for parameter in parameters:
            parameter.grad = None
        with torch.autocast("cpu", torch.bfloat16):
            loss = call().float().square().mean()
        loss.backward()

    return step


def unet_ways(batch: int) -> dict[str, Callable[[], None]]:
    """A training step of the bundled UNet; each way has the UNet to itself."""
    latents, times, states = torch.randn(batch, 4, 16, 16), torch.arange(batch), torch.randn(batch, 12, 256)
    ways = {}
    for way in WAYS:
        unet = AltDiffusionPipeline.from_pretrained(None).unet.train()
        if way != "fused":
            unet.set_attn_processor(PlainWhereShort())
        ways[way] = forth_and_back(
            lambda unet=unet: unet(latents, times, states).sample, list(unet.parameters())
        )
    return ways


def text_ways(batch: int) -> dict[str, Callable[[], None]]:
    """A step of the bundled text tower on texts of twelve tokens."""
    tokens = torch.randint(5, 1000, (batch, 12))
    return tower_ways("text_model", tokens, torch.ones_like(tokens))


def image_ways(batch: int) -> dict[str, Callable[[], None]]:
    """A step of the bundled image tower."""
    return tower_ways("vision_model", torch.randn(batch, 3, 64, 64))


def tower_ways(part: str, *given: Tensor) -> dict[str, Callable[[], None]]:
    ways = {}
    for way in WAYS:
        clip = AltCLIP.from_pretrained(None).model.train()
        if way != "fused":
            attend_in_clip(clip, "bf16")
        tower = getattr(clip, part)
        ways[way] = forth_and_back(
            lambda tower=tower: tower(*given).last_hidden_state, list(tower.parameters())
        )
    return ways


def kernel_ways(samples: int, heads: int, queries: int, keys: int, width: int) -> dict[str, Callable]:
    """Attention alone."""
    q, k, v = (
        torch.randn(samples, heads, n, width, dtype=torch.bfloat16, requires_grad=True)
        for n in (queries, keys, keys)
    )

    def plain() -> Tensor:
        return (q @ k.transpose(-1, -2) * width**-0.5).softmax(-1) @ v

    calls = (lambda: F.scaled_dot_product_attention(q, k, v), plain)
    return {way: forth_and_back(call, [q, k, v]) for way, call in zip(WAYS, calls, strict=True)}


def measure(batch: int, rounds: int, shapes: tuple = SHAPES) -> dict[str, Any]:
    start, rows = Start(), []
    jobs = {f"bundled UNet, {batch} samples": unet_ways, f"bundled text tower, {batch} texts": text_ways}
    jobs[f"bundled image tower, {batch} pictures"] = image_ways
    cases = [(name, ways(batch)) for name, ways in jobs.items()]
    for s, h, q, k, w in shapes:
        cases.append((f"attention alone, {q} x {k} of width {w}, {s} x {h}", kernel_ways(s, h, q, k, w)))
    with tqdm(total=len(cases) * len(WAYS) * (rounds + 1), disable=None, unit="step") as bar:
        for name, ways in cases:
            rows.append({"case": name, "cpu_s": median_seconds(ways, rounds, bar)})
    return {
        "rows": rows,
        "rounds": rounds,
        "made with": start.made_with("torch", "diffusers", "transformers"),
    }


def table(report: dict[str, Any]) -> str:
    lines = ["| forth and back, bf16 | fused, CPU ms | plain, CPU ms | fused / plain |", "|---|---|---|---|"]
    for row in report["rows"]:
        fused, plain = (1000 * row["cpu_s"][way] for way in WAYS)
        lines.append(f"| {row['case']} | {fused:.1f} | {plain:.1f} | {fused / plain:.2f} |")
    return "\n".join([*lines, "", origin(report), ""])


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=7)
    options.add_argument("--batch", type=int, default=64)
    arguments = options.parse_args()
    torch.set_num_threads(1)
    tell(measure(arguments.batch, arguments.rounds), "attending", "attending", table, arguments)


if __name__ == "__main__":
    main()
