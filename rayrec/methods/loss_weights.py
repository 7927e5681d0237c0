"""Methods that weigh the losses themselves by numbers that are learned along: GradNorm and uncertainty weighting.

Both steps update ``weights`` (T,) in place from quantities of one batch, with a learning rate of their own.
"""

import torch
from torch import Tensor


def gradnorm_step(
    weights: Tensor, *, norms: Tensor, progress: Tensor, asymmetry: float, learning_rate: float
) -> Tensor:
    """GradNorm (Chen et al. 2018, algorithm 1): tasks that learn slowly get larger gradients.

    norms: (T,) gradient norms G_t of the *weighted* losses. progress: (T,) loss now / loss at the start. Each G_t is drawn to the
    mean G times (relative progress)^asymmetry by a gradient step on sum |G_t - target_t| / mean G (the division is ours: it
    makes the learning rate independent of the scale of the losses); then the weights are brought back to sum T. Tasks with
    gradient 0 in this batch keep theirs.
    """
    seen = norms > 0.0
    count = seen.sum().clamp_min(1)
    mean_norm = norms.sum() / count
    relative = progress / (torch.where(seen, progress, 0.0).sum() / count).clamp_min(1e-12)
    target = mean_norm * relative.pow(asymmetry)
    slope = torch.sign(norms - target) * norms / weights / mean_norm.clamp_min(torch.finfo(norms.dtype).tiny)
    moved = torch.where(seen, weights - learning_rate * slope, weights).clamp_min(1e-3)
    return weights.copy_(moved * (len(weights) / moved.sum()))


def uncertainty_step(weights: Tensor, losses: Tensor, learning_rate: float) -> Tensor:
    """Uncertainty weighting (Kendall et al. 2018, equation 10): weight exp(-s) of each task's loss L, s = log variance.

    One gradient step of s on exp(-s) L + s / 2, whose minimum is the weight 1 / (2 L). Tasks of loss 0 keep theirs.
    """
    slope = 0.5 - weights * losses
    return weights.mul_(torch.where(losses > 0.0, torch.exp(learning_rate * slope), 1.0))
