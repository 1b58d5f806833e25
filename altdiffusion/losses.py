"""The losses of both papers. Pure functions of tensors: no models, no files."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

#: The log of the factor of the contrastive distillation (modeling_kd.py of the AltDiffusion paper's code).
DISTILLATION_SCALE = 1.5


def contrastive_loss(
    image: Float[Tensor, "batch dim"],
    text: Float[Tensor, "batch dim"],
    logit_scale: Float[Tensor, ""],
    groups: Int[Tensor, " batch"] | None = None,
) -> Float[Tensor, ""]:
    """Symmetric InfoNCE over unit-norm embeddings (Radford et al. 2021, figure 3). `logit_scale` is the log
    of the factor.

    Rows of one group show the same thing (a caption that occurs twice in the batch): they are no negatives of
    each other.
    """
    logits = logit_scale.exp() * image @ text.T
    if groups is not None:
        repeated = (groups[:, None] == groups[None, :]).fill_diagonal_(False)
        logits = logits.masked_fill(repeated, float("-inf"))
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def sigmoid_loss(
    image: Float[Tensor, "batch dim"],
    text: Float[Tensor, "batch dim"],
    logit_scale: Float[Tensor, ""],
    logit_bias: Float[Tensor, ""],
    groups: Int[Tensor, " batch"] | None = None,
) -> Float[Tensor, ""]:
    """SigLIP over unit-norm embeddings (Zhai et al. 2023, equation 1): each pair by itself, is it one or not.

    Rows of one `groups` number show the same thing and are left out as negatives of each other.
    """
    logits = logit_scale.exp() * image @ text.T + logit_bias
    sign = 2 * torch.eye(len(logits), device=logits.device, dtype=logits.dtype) - 1
    losses = -F.logsigmoid(sign * logits)
    if groups is not None:
        losses = losses.masked_fill((groups[:, None] == groups[None, :]).fill_diagonal_(False), 0.0)
    return losses.sum() / len(logits)


def distillation_loss(
    states: Float[Tensor, "batch tokens dim"],
    target: Float[Tensor, "batch dim"],
    sequence_weight: float = 0.0,
    kind: str = "mse",
    groups: Int[Tensor, " batch"] | None = None,
    lengths: Int[Tensor, " batch"] | None = None,
    token_targets: Float[Tensor, "batch tokens dim"] | None = None,
) -> Float[Tensor, ""]:
    """Teacher learning (Chen et al. 2022, section 3.2): the student's first token repeats the teacher's
    end-of-text state.

    `states` are the student's projected states, `target` the teacher's pooled output before its text
    projection. With `sequence_weight` all other states are drawn there too, since a UNet attends to every one
    of them, or each to its own of `token_targets`. Where `lengths` says how many tokens each text has, these
    and one pad count, however far the batch pads it. `kind`: "mse" is the paper's; "cosine" leaves the length
    free; "contrastive" tells each target from the others of the batch, where `groups` names equal ones, and
    draws the other states there by "mse".
    """
    if kind == "contrastive":
        unit, goal = F.normalize(states[:, 0], dim=-1), F.normalize(target, dim=-1)
        pooled = contrastive_loss(unit, goal, unit.new_tensor(DISTILLATION_SCALE), groups)
    else:
        pooled = _distances(states[:, 0], target, kind).mean()
    if not sequence_weight:
        return pooled
    goals = target[:, None].expand_as(states) if token_targets is None else token_targets
    of_tokens = _distances(states, goals, kind)
    if lengths is None:
        return pooled + sequence_weight * of_tokens.mean()
    counts = torch.arange(states.shape[1], device=states.device) <= lengths.to(states.device)[:, None]
    of_texts = (of_tokens * counts).sum(1) / counts.sum(1)
    return pooled + sequence_weight * of_texts.mean()


def _distances(states: Tensor, target: Tensor, kind: str) -> Tensor:
    if kind == "cosine":
        return 1 - F.cosine_similarity(states, target, dim=-1)
    return (states - target).square().mean(dim=-1)


def diffusion_loss(
    prediction: Float[Tensor, "batch channels height width"],
    target: Float[Tensor, "batch channels height width"],
    snr: Float[Tensor, " batch"],
    prediction_type: str = "epsilon",
    snr_gamma: float | None = None,
) -> Float[Tensor, ""]:
    """Mean squared error of the noise (or velocity), weighted by min-SNR where `snr_gamma` is given (Hang et
    al. 2023, section 3.4).

    The weight min(snr, gamma) belongs to the error of x0; an epsilon error is 1/snr of it, a velocity error
    1/(snr + 1).
    """
    errors = (prediction - target).square().mean(dim=(1, 2, 3))
    if snr_gamma is not None:
        scale = {"epsilon": snr, "v_prediction": snr + 1}[prediction_type]
        errors = errors * snr.clamp(max=snr_gamma) / scale
    return errors.mean()


def imitation_loss(
    prediction: Float[Tensor, "batch channels height width"],
    teacher: Float[Tensor, "batch channels height width"],
    blocks: Sequence[Float[Tensor, "batch ..."]] = (),
    teacher_blocks: Sequence[Float[Tensor, "batch ..."]] = (),
    block_weight: float = 0.1,
) -> Float[Tensor, ""]:
    """A UNet under one text encoder predicts what it predicts under its own (PEA-Diffusion, Ma et al. 2024,
    section 3.2): mean squared error of the predictions, and of what each of its blocks gives, weighted.
    """
    pairs = zip(blocks, teacher_blocks, strict=True)
    inside = [F.mse_loss(block, goal) for block, goal in pairs]
    return F.mse_loss(prediction, teacher) + block_weight * sum(inside, prediction.new_zeros(()))
