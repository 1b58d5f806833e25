"""The losses of both papers. Pure functions of tensors: no models, no files."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


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


def distillation_loss(
    states: Float[Tensor, "batch tokens dim"],
    target: Float[Tensor, "batch dim"],
    sequence_weight: float = 0.0,
) -> Float[Tensor, ""]:
    """Teacher learning (Chen et al. 2022, section 3.2): the student's first token repeats the teacher's
    end-of-text state.

    `states` are the student's projected states, `target` the teacher's pooled output before its text
    projection. With `sequence_weight` all other states are drawn there too: a UNet attends to every one of
    them.
    """
    pooled = F.mse_loss(states[:, 0], target)
    if not sequence_weight:
        return pooled
    return pooled + sequence_weight * F.mse_loss(states, target[:, None].expand_as(states))


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
