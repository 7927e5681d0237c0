"""Means over the rows of an update, on all workers, for the losses of rankers and of the methods that train them."""

import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits


def masked_cross_entropy(
    logits: Tensor, labels: Tensor, weights: Tensor | None = None, joint_sizes: Tensor | None = None
) -> Tensor:
    """Per-task mean binary cross-entropy (T,) over observed rows: logits (B, T), labels (B, T) with NaN = unobserved.

    A task observed on no row gives 0. joint_sizes: (T,) what to divide by; None = the observed weight, under torch.distributed
    the mean of all workers', so that averaging gradients over workers equals one worker with the joint batch, however unevenly
    the observed rows fall.
    """
    row_weights = observed_weights(labels, weights)
    losses = binary_cross_entropy_with_logits(logits, labels.nan_to_num(0.0), reduction="none") * row_weights
    if joint_sizes is not None:
        return losses.sum(0) / joint_sizes.to(losses.dtype).clamp_min(1e-12)
    return losses.sum(0) / joint(row_weights.sum(0)).clamp_min(1e-12)


def observed_weights(labels: Tensor, weights: Tensor | None) -> Tensor:
    """(B, T) weights of the rows, 0 where the task's label is NaN."""
    observed = ~labels.isnan()
    return observed.float() if weights is None else observed * weights.unsqueeze(1)


def joint(sizes: Tensor) -> Tensor:
    """The mean of all workers' sizes: sums divided by it average, over workers, to the joint batch's mean."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        sizes = sizes.clone()
        dist.all_reduce(sizes)
        sizes /= dist.get_world_size()
    return sizes
