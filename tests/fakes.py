"""Tiny random models in the layout that we save: real classes, complete folders, made in under a second.

Everything here uses the stock libraries alone, so that a folder made here also checks that ours reads what
theirs wrote.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import (
    AltCLIPConfig,
    AltCLIPModel,
    AltCLIPTextConfig,
    AltCLIPTextModel,
    AltCLIPVisionConfig,
    CLIPImageProcessor,
    XLMRobertaTokenizer,
)

#: One short sentence for each language of AltDiffusion-m18.
SENTENCES = {
    "en": "a red lobster and a cat on the beach",
    "zh": "海滩上有一只红色的龙虾和一只猫",
    "ja": "砂浜に赤いロブスターと猫がいる",
    "th": "กุ้งมังกรสีแดงและแมวบนชายหาด",
    "ko": "해변에 있는 빨간 랍스터와 고양이",
    "hi": "समुद्र तट पर एक लाल लॉबस्टर और एक बिल्ली",
    "uk": "червоний омар і кішка на пляжі",
    "ar": "كركند أحمر وقطة على الشاطئ",
    "tr": "plajda kırmızı bir ıstakoz ve bir kedi",
    "vi": "tôm hùm đỏ và một con mèo trên bãi biển",
    "pl": "czerwony homar i kot na plaży",
    "nl": "een rode kreeft en een kat op het strand",
    "pt": "uma lagosta vermelha e um gato na praia",
    "it": "un'aragosta rossa e un gatto sulla spiaggia",
    "es": "una langosta roja y un gato en la playa",
    "de": "ein roter Hummer und eine Katze am Strand",
    "fr": "un homard rouge et un chat sur la plage",
    "ru": "красный омар и кошка на пляже",
}

COVERED = ["🦞", "🐈", "🍎", "🌵"]

#: Alphabets that fit; Han and Hangul come from the sentences, as their blocks outweigh the whole model.
_ALPHABETS = [
    (0x21, 0x17F),
    (0x1A0, 0x1B1),
    (0x300, 0x33F),
    (0x386, 0x3CF),
    (0x400, 0x4FF),
    (0x600, 0x6FF),
    (0x900, 0x97F),
    (0xE01, 0xE5B),
    (0x1EA0, 0x1EFA),
    (0x2010, 0x2027),
    (0x3001, 0x30FF),
    (0x1F300, 0x1F5FF),
    (0x1F600, 0x1F64F),
    (0x1F900, 0x1F9FF),
]


def tiny_tokenizer(max_length: int = 77) -> XLMRobertaTokenizer:
    """Unigram over single characters and the words of `SENTENCES`, in XLM-R's id layout."""
    characters = {chr(code) for first, last in _ALPHABETS for code in range(first, last + 1)}
    characters |= {character for sentence in SENTENCES.values() for character in sentence if character != " "}
    words = {"▁" + word for sentence in SENTENCES.values() for word in sentence.split() if len(word) < 11}
    vocab = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -8.0)]
    vocab += [(character, -10.0) for character in sorted(characters)]
    vocab += [(word, -12.0) for word in sorted(words)]
    vocab += [("<mask>", 0.0)]
    return XLMRobertaTokenizer(vocab=vocab, model_max_length=max_length)


def tiny_text_config(vocab_size: int, **overrides) -> AltCLIPTextConfig:
    fields = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 82,
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "project_dim": 32,
        "use_attention_mask": True,
    }
    return AltCLIPTextConfig(vocab_size=vocab_size, **{**fields, **overrides})


def roughen(model: torch.nn.Module, scale: float = 0.3) -> torch.nn.Module:
    """Makes fresh weights non-trivial: norms and biases away from 1 and 0, embeddings of trained size.

    A tower with all LayerNorms at 1 and 0 hides a forgotten or doubled normalisation.
    """
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.LayerNorm | torch.nn.GroupNorm):
                module.weight.normal_(1.0, scale)
                module.bias.normal_(0.0, scale)
            elif isinstance(module, torch.nn.Embedding):
                module.weight.normal_(0.0, 0.5)
            elif isinstance(module, torch.nn.Linear):
                module.weight.normal_(0.0, module.in_features**-0.5)
                if module.bias is not None:
                    module.bias.normal_(0.0, 0.1)
    return model.eval()


def tiny_tower(seed: int = 0, vocab_size: int | None = None, **overrides) -> AltCLIPTextModel:
    """A text tower of 2 layers by 32, or of any size that `overrides` asks for."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vocab_size = vocab_size or len(tiny_tokenizer())
        return roughen(AltCLIPTextModel(tiny_text_config(vocab_size, **overrides)))


def tiny_altclip(seed: int = 0) -> AltCLIPModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        text = tiny_text_config(len(tiny_tokenizer()))
        vision = AltCLIPVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=32,
            patch_size=8,
        )
        config = AltCLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=16)
        return roughen(AltCLIPModel(config))


def tiny_image_processor() -> CLIPImageProcessor:
    return CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})


def tiny_unet(cross_attention_dim: int = 32, in_channels: int = 4) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=in_channels,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
        norm_num_groups=8,
        cross_attention_dim=cross_attention_dim,
    ).eval()


def tiny_controlnet(unet: UNet2DConditionModel, seed: int = 0) -> ControlNetModel:
    """A ControlNet with something to say: a fresh one is silent until it is trained."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 8, 16))
        for layer in (*net.controlnet_down_blocks, net.controlnet_mid_block):
            torch.nn.init.normal_(layer.weight, std=0.3)
        torch.nn.init.normal_(net.controlnet_cond_embedding.conv_out.weight, std=1.0)
    return net.eval()


def tiny_vae() -> AutoencoderKL:
    return AutoencoderKL(
        sample_size=64,
        block_out_channels=(8, 8, 16),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=4,
        norm_num_groups=4,
    ).eval()


def tiny_scheduler() -> DPMSolverMultistepScheduler:
    return DPMSolverMultistepScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        steps_offset=1,
    )


def tiny_stock_pipeline(seed: int = 0) -> StableDiffusionPipeline:
    """The stock pipeline, 64 px, whose text encoder is the text tower of `tiny_altclip(seed)`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tower = AltCLIPTextModel(tiny_text_config(len(tiny_tokenizer()))).eval()
        tower.load_state_dict(tiny_altclip(seed).text_model.state_dict())
        pipeline = StableDiffusionPipeline(
            vae=tiny_vae(),
            text_encoder=tower,
            tokenizer=tiny_tokenizer(),
            unet=tiny_unet(),
            scheduler=tiny_scheduler(),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def tiny_altclip_folder(path: Path, seed: int = 0) -> Path:
    """What `AltCLIPModel`, its tokenizer and its image processor save."""
    tiny_altclip(seed).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    tiny_image_processor().save_pretrained(path)
    return path


def tiny_pipeline_folder(path: Path, seed: int = 0) -> Path:
    """A complete model folder in our layout: diffusers parts, `altclip/`, card, covered emoji, manifest."""
    path = Path(path)
    tiny_stock_pipeline(seed).save_pretrained(path)
    tiny_altclip_folder(path / "altclip", seed)
    (path / "README.md").write_text(
        "---\nlicense: apache-2.0\n---\n\n# A tiny random model\n", encoding="utf-8"
    )
    card = {
        "covered": COVERED,
        "languages": list(SENTENCES),
        "defaults": {"steps": 4, "guidance_scale": 3.0, "width": 64, "height": 64, "scheduler": "dpm++"},
        "recipe": "none",
        "commit": "none",
        "figures": {},
    }
    (path / "emoji.json").write_text(json.dumps(card, ensure_ascii=False, indent=1), encoding="utf-8")
    files = sorted(file for file in path.rglob("*") if file.is_file())
    manifest = {file.relative_to(path).as_posix(): _sha256(file) for file in files}
    (path / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    return path


def padded_encode(
    tower: AltCLIPTextModel, tokenizer: XLMRobertaTokenizer, prompts: Iterable[str], length: int = 77
):
    """What the trimmed encode must equal: everything padded to `length`, the mask passed, the tower run."""
    inputs = tokenizer(
        list(prompts), padding="max_length", truncation=True, max_length=length, return_tensors="pt"
    )
    with torch.no_grad():
        return tower(inputs.input_ids, attention_mask=inputs.attention_mask).last_hidden_state


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
