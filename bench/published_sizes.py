"""Loads models of the published sizes and draws one step with them: time and peak memory, as JSON.

    python -m bench.published_sizes --folder FOLDER [--models m2,m9,m18] [--limit-gib 12]

The weights are random (bf16), the sizes those of the published models: AltCLIP's configs, the UNet of Stable
Diffusion 1.4 (m2, m9) or 2.1-base (m18) and their VAE. Each model is written in the published layouts
(diffusers folder with `alt_diffusion`'s encoder, transformers AltCLIP), then loaded in a process of its own,
whose peak memory counts: of all of it, and of loading alone as a share of the weights in bf16. FOLDER needs
6 GB while one model is measured. Exit code 1: over the limit.
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bench.limits import resident

GIB = 2**30
SIZE, STEPS = 256, 1
DROPOUT = {"m2": 0.1, "m9": 0.0, "m18": 0.1}
#: XLM-R-large, as all three models have it.
#: What the toy models of all benches have in the place of the published widths.
NARROW = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT = {
    "vocab_size": 250002,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
    "pooler_fn": "cls",
    "learn_encoder": False,
}
VISION_L = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
}
VISION_H = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
}
UNET = {
    "sample_size": 64,
    "block_out_channels": [320, 640, 1280, 1280],
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "layers_per_block": 2,
}
UNET_1 = {**UNET, "cross_attention_dim": 768, "attention_head_dim": 8}
UNET_2 = {
    **UNET,
    "cross_attention_dim": 1024,
    "attention_head_dim": [5, 10, 20, 20],
    "use_linear_projection": True,
}
VAE = {
    "sample_size": 512,
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}
SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


def write_altdiffusion(model: str, folder: Path) -> None:
    """The layout of BAAI/AltDiffusion: a diffusers folder whose encoder is of the module `alt_diffusion`."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from diffusers.pipelines.deprecated.alt_diffusion.modeling_roberta_series import (
        RobertaSeriesConfig,
        RobertaSeriesModelWithTransformation,
    )

    wide = model == "m18"
    text = {**TEXT, "project_dim": 1024 if wide else 768, "hidden_dropout_prob": DROPOUT[model]}
    text |= {"has_pre_transformation": True} if wide else {}
    unet = UNET_2 if wide else UNET_1
    _write_part(
        folder / "text_encoder",
        lambda: RobertaSeriesModelWithTransformation(RobertaSeriesConfig(**text)),
        {"architectures": ["RobertaSeriesModelWithTransformation"], "model_type": "xlm-roberta", **text},
        "model.safetensors",
    )
    for name, kind, config in (("unet", UNet2DConditionModel, unet), ("vae", AutoencoderKL, VAE)):
        _write_part(
            folder / name,
            lambda kind=kind, config=config: kind(**config),
            {"_class_name": kind.__name__, **config},
            "diffusion_pytorch_model.safetensors",
        )
    _write_json(folder / "scheduler" / "scheduler_config.json", SCHEDULER)
    _write_tokenizer(folder / "tokenizer", 77)
    _write_json(
        folder / "model_index.json",
        {
            "_class_name": "AltDiffusionPipeline",
            "text_encoder": ["alt_diffusion", "RobertaSeriesModelWithTransformation"],
            "tokenizer": ["transformers", "XLMRobertaTokenizer"],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
            "scheduler": ["diffusers", "DDIMScheduler"],
            "safety_checker": [None, None],
            "feature_extractor": [None, None],
            "requires_safety_checker": False,
        },
    )


def write_altclip(model: str, folder: Path) -> None:
    """The layout of BAAI/AltCLIP; m18 with its second head, which transformers does not know."""
    from transformers import AltCLIPConfig, AltCLIPModel

    wide = model == "m18"
    project_dim = 1024 if wide else 768
    text = {**TEXT, "project_dim": project_dim, "hidden_dropout_prob": DROPOUT[model]}
    vision = {
        "image_size": 224,
        "patch_size": 14,
        "hidden_act": "quick_gelu",
        **(VISION_H if wide else VISION_L),
    }
    config = {"text_config": text, "vision_config": vision, "projection_dim": project_dim, "direct_kd": False}
    head = {"weight": (project_dim, TEXT["hidden_size"]), "bias": (project_dim,)}
    _write_part(
        folder,
        lambda: AltCLIPModel(AltCLIPConfig(**config)),
        {"architectures": ["AltCLIPModel"], "model_type": "altclip", **config},
        "model.safetensors",
        {f"text_model.transformation_pre.{kind}": shape for kind, shape in head.items()} if wide else {},
    )
    _write_json(
        folder / "preprocessor_config.json",
        {
            "image_processor_type": "CLIPImageProcessor",
            "crop_size": 224,
            "size": 224,
            "do_center_crop": True,
            "do_normalize": True,
            "do_resize": True,
            "resample": 3,
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
        },
    )
    _write_tokenizer(folder, 512)


def draw(folder: Path) -> dict[str, Any]:
    """Loads the folder as a user does and draws one step; what it took."""
    import torch

    from altdiffusion import AltDiffusionPipeline

    before = _begin()
    start = time.perf_counter()
    pipeline = AltDiffusionPipeline.from_pretrained(folder, dtype=torch.bfloat16, device="cpu")
    loaded, taken = time.perf_counter(), resident("VmHWM") - before
    pipeline.set_progress_bar_config(disable=True)
    pipeline("a cat", height=SIZE, width=SIZE, num_inference_steps=STEPS, generator=torch.manual_seed(0))
    parameters = sum(
        p.numel() for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder) for p in part.parameters()
    )
    return _measured(parameters, loaded - start, time.perf_counter() - loaded, taken)


def encode(folder: Path) -> dict[str, Any]:
    """Loads the AltCLIP and compares a text with a picture."""
    import torch
    from PIL import Image

    from altdiffusion import AltCLIP

    before = _begin()
    start = time.perf_counter()
    clip = AltCLIP.from_pretrained(folder, dtype=torch.bfloat16, device="cpu")
    loaded, taken = time.perf_counter(), resident("VmHWM") - before
    clip.logits(["a cat"], Image.new("RGB", (224, 224), "red"))
    parameters = sum(p.numel() for p in clip.model.parameters())
    return _measured(parameters, loaded - start, time.perf_counter() - loaded, taken)


def _begin() -> int:
    """The memory in use after the imports, from which on the peak is counted anew."""
    from altdiffusion import checkpoints

    checkpoints.model_classes()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return resident("VmRSS")


def _measured(parameters: int, load_s: float, run_s: float, load_bytes: int) -> dict[str, Any]:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # kilobytes on Linux
    seconds = {"load_s": round(load_s, 1), "run_s": round(run_s, 1)}
    share = {"load_of_weights": round(load_bytes / (2 * parameters), 3)}  # bf16: two bytes
    return {"parameters": parameters, "peak_gib": round(peak / GIB, 2), **share, **seconds}


def _write_part(
    folder: Path,
    build: Any,
    config: dict[str, Any],
    name: str,
    more: dict[str, tuple[int, ...]] | None = None,
) -> None:
    import torch
    from safetensors.torch import save_file

    with torch.device("meta"):
        shapes = {key: tuple(tensor.shape) for key, tensor in build().state_dict().items()} | (more or {})
    random = torch.Generator().manual_seed(0)
    tensors = {
        key.replace("encoder.layers.", "encoder.layer.") if "roberta" in key else key: torch.empty(
            shape, dtype=torch.bfloat16
        ).normal_(0, 0.02, generator=random)
        for key, shape in shapes.items()
    }
    _write_json(folder / "config.json", config)
    save_file(tensors, folder / name, metadata={"format": "pt"})


def _write_tokenizer(folder: Path, length: int) -> None:
    """Few words: the size of the vocabulary is the model's, whatever the tokenizer uses of it."""
    from transformers import XLMRobertaTokenizer

    vocab = [
        ("<s>", 0.0),
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", 0.0),
        ("▁a", -1.0),
        ("▁cat", -1.0),
        ("<mask>", 0.0),
    ]
    XLMRobertaTokenizer(vocab=vocab, model_max_length=length).save_pretrained(folder)


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=1), encoding="utf-8")


#: What is measured: (name, writer, user).
TASKS = {"AltDiffusion": (write_altdiffusion, draw), "AltCLIP": (write_altclip, encode)}


def measure(models: Iterable[str], folder: Path) -> Iterable[dict[str, Any]]:
    """Writing and loading each have a process of their own: one would count in the other's peak."""
    for model in models:
        for task in TASKS:
            place = folder / f"{task}-{model}"
            for step in ("write", "use"):
                command = [sys.executable, "-m", "bench.published_sizes", "--folder", str(place)]
                command += ["--models", model, "--task", task, "--step", step]
                done = subprocess.run(command, check=True, capture_output=step == "use", encoding="utf-8")
            shutil.rmtree(place)
            yield {"model": f"{task}-{model}", **json.loads(done.stdout)}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--models", default="m2,m9,m18")
    parser.add_argument("--limit-gib", type=float, default=12)
    parser.add_argument("--task", choices=TASKS, help=argparse.SUPPRESS)
    parser.add_argument("--step", choices=("write", "use"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.task:
        write, use = TASKS[arguments.task]
        if arguments.step == "write":
            write(arguments.models, arguments.folder)
        else:
            print(json.dumps(use(arguments.folder)))
        return 0
    figures = list(measure(arguments.models.split(","), arguments.folder))
    report = {
        "size": SIZE,
        "steps": STEPS,
        "dtype": "bfloat16",
        "limit_gib": arguments.limit_gib,
        "figures": figures,
    }
    print(json.dumps(report, indent=1))
    return int(any(row["peak_gib"] > arguments.limit_gib for row in figures))


if __name__ == "__main__":
    raise SystemExit(main())
