"""Attention over short sequences (tens of positions) with an additive bias."""

import torch
from torch import Tensor
from torch.nn.functional import dropout, scaled_dot_product_attention


def attend(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, *, scale: float, dropout_p: float = 0.0
) -> Tensor:
    """softmax(scale * query @ key.T + bias) @ value: query (..., Q, d), key and value (..., K, d), bias broadcast to (..., Q, K).

    torch's fused CPU kernel takes three to five times as long in bf16 as these three products at lengths of some 20, so there
    they are written out; in fp32 and on GPUs the fused kernel is used.
    """
    if query.device.type != "cpu" or query.dtype == torch.float32:
        mask = None if bias is None else bias.to(query.dtype)
        return scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout_p, scale=scale)
    with torch.autocast("cpu", enabled=False):
        scores = (query * scale) @ key.transpose(-1, -2)
        if bias is not None:
            scores = scores + bias.to(scores.dtype)
        weights = scores.softmax(-1)
        return (dropout(weights, dropout_p) if dropout_p else weights) @ value.to(weights.dtype)
