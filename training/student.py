"""The student of teacher learning: a new XLM-R, the body of a pretrained one, or an AltCLIP's tower."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AltCLIPConfig,
    AltCLIPModel,
    AltCLIPTextConfig,
    AltCLIPTextModel,
    AutoConfig,
    AutoTokenizer,
    CLIPModel,
    XLMRobertaModel,
    XLMRobertaTokenizer,
)

from altdiffusion.conditioning import MAX_LENGTH, tokenize, tower_length
from altdiffusion.model import AltCLIP
from altdiffusion.towers import in_memory


@dataclass(frozen=True)
class StudentConfig:
    """Shape of the XLM-R student; its project_dim is the teacher's text width."""

    vocab_size: int = 16000
    hidden_size: int = 256
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    max_position_embeddings: int = 514
    """XLM-R's: 512 tokens and two positions that padding takes."""
    backbone: Path | None = None
    """XLM-R checkpoint, a folder or a Hub name, whose body and tokenizer the student starts with, in its own
    shape. None: a new one of the shape above."""


def build_student(config: StudentConfig, vocabulary: int, width: int) -> AltCLIPTextModel:
    """A student from nothing."""
    return AltCLIPTextModel(
        AltCLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=config.hidden_size,
            intermediate_size=4 * config.hidden_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            max_position_embeddings=config.max_position_embeddings,
            type_vocab_size=1,
            project_dim=width,
            hidden_dropout_prob=0.0,  # the target is exact: noise in the student would only slow it
            attention_probs_dropout_prob=0.0,
            bos_token_id=0,
            pad_token_id=1,
            eos_token_id=2,
            use_attention_mask=True,  # tells diffusers' own pipelines to pass the mask
        )
    )


def student_from_backbone(folder: Path, width: int) -> tuple[AltCLIPTextModel, XLMRobertaTokenizer]:
    """A student with the body of an XLM-R; its head is new."""
    found: Any = AutoConfig.from_pretrained(folder)
    if found.model_type != "xlm-roberta":
        raise ValueError(f"student.backbone: {str(folder)!r:.80} is {found.model_type}; allowed: xlm-roberta")
    body: Any = XLMRobertaModel.from_pretrained(folder, dtype=torch.float32, add_pooling_layer=False)
    shared = {
        name: getattr(found, name) for name in AltCLIPTextConfig.__annotations__ if hasattr(found, name)
    }
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    student = AltCLIPTextModel(
        AltCLIPTextConfig(**shared | still, project_dim=width, use_attention_mask=True)
    )
    student.roberta.load_state_dict({in_memory(name): value for name, value in body.state_dict().items()})
    return student, AutoTokenizer.from_pretrained(folder)


def student_of(folder: Path, form: str) -> tuple[AltCLIPTextModel, Any, dict[str, Tensor] | None]:
    """The text tower of an AltCLIP with its tokenizer, and an m18's generation head where it has one."""
    if form == "own":
        model = AltCLIPModel.from_pretrained(folder, dtype=torch.float32)
        return model.text_model, AutoTokenizer.from_pretrained(folder), None
    clip = AltCLIP.from_pretrained(str(folder), dtype=torch.float32, device="cpu")
    return clip.model.text_model, clip.tokenizer, clip.generation_head


def still(student: nn.Module) -> None:
    """Published towers come with dropout; the target is exact, and the authors trained without it."""
    for module in student.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("attention_dropout", "dropout"):  # AltCLIP's, CLIP's
            if isinstance(vars(module).get(name), float):
                vars(module)[name] = 0.0


def two_states(student: AltCLIPTextModel, tokenizer: Any, texts: list[str]) -> tuple[Tensor, Tensor, Tensor]:
    """The projected states; what m18's head takes, those before the last layer, normed by the tower; and the
    tokens of each text.

    As many rows as the longest text has, and one pad row.
    """
    rows = tokenize(tokenizer, texts, min(MAX_LENGTH, tower_length(student)))
    width = min(max(map(len, rows)) + 1, MAX_LENGTH)
    inputs = tokenizer.pad(
        {"input_ids": rows}, padding="max_length", max_length=width, return_tensors="pt"
    ).to(student.device)
    output = student(inputs.input_ids, attention_mask=inputs.attention_mask, output_hidden_states=True)
    lengths = torch.tensor([len(row) for row in rows], device=student.device)
    return output.last_hidden_state, student.pre_LN(output.hidden_states[-2]), lengths


@torch.no_grad()
def mix_in_start(student: AltCLIPTextModel, model: Path | None, form: str, share: float) -> None:
    """What was learnt and what was known before, between which a straight line goes through good towers."""
    if model is None or not share:
        return
    start = dict(student_of(model, form)[0].named_parameters())
    for name, parameter in student.named_parameters():
        parameter.lerp_(start[name].to(parameter), share)


def assemble(student: AltCLIPTextModel, teacher: CLIPModel, change: Tensor | None = None) -> AltCLIPModel:
    """An AltCLIP of the student's text tower and the teacher's everything else.

    `change` are the coordinates of the student's states; its inverse goes into the text projection.
    """
    vision = teacher.config.vision_config.to_dict() | {"model_type": "altclip_vision_model"}
    altclip = AltCLIPModel(
        AltCLIPConfig(
            text_config=student.config.to_dict(),
            vision_config=vision,
            projection_dim=teacher.config.projection_dim,
        )
    )
    altclip.text_model.load_state_dict(student.state_dict())
    altclip.vision_model.load_state_dict(teacher.vision_model.state_dict())
    for name in ("visual_projection", "text_projection"):
        getattr(altclip, name).load_state_dict(getattr(teacher, name).state_dict())
    if change is not None:
        projection = altclip.text_projection.weight
        projection.data = (projection.double() @ torch.linalg.inv(change.double()).T).float()
    altclip.logit_scale.data.copy_(teacher.logit_scale.data)
    return altclip.eval()
