"""A LLaMA-style decoder: RMSNorm before each part, rotary positions, SwiGLU, no biases.

Source: Touvron et al. 2023, arXiv 2302.13971; rotary embedding: Su et al. 2021, arXiv 2104.09864 (halves, not pairs, are
rotated, as in transformers). Weights are named as in transformers' ``LlamaForCausalLM``, which can load them as they are.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention, silu


@dataclass(frozen=True)
class LlamaShape:
    """hidden: width. intermediate: width inside SwiGLU. heads must divide hidden into even parts."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        if self.hidden % self.heads or (self.hidden // self.heads) % 2:
            raise ValueError(f"hidden must be heads times an even number, not {self.hidden} with {self.heads} heads")


ShapeName = Literal["micro", "tiny", "small", "60m", "130m", "350m", "1b", "3b", "7b", "13b"]

# From "60m" on: the shapes that GaLore and APOLLO are measured on (their names count a vocabulary of 32,000).
SHAPES: Mapping[ShapeName, LlamaShape] = {
    "micro": LlamaShape(hidden=64, intermediate=176, layers=3, heads=4),
    "tiny": LlamaShape(hidden=128, intermediate=344, layers=4, heads=4),
    "small": LlamaShape(hidden=256, intermediate=688, layers=6, heads=8),
    "60m": LlamaShape(hidden=512, intermediate=1376, layers=8, heads=8),
    "130m": LlamaShape(hidden=768, intermediate=2048, layers=12, heads=12),
    "350m": LlamaShape(hidden=1024, intermediate=2736, layers=24, heads=16),
    "1b": LlamaShape(hidden=2048, intermediate=5461, layers=24, heads=32),
    "3b": LlamaShape(hidden=2560, intermediate=6848, layers=32, heads=32),
    "7b": LlamaShape(hidden=4096, intermediate=11008, layers=32, heads=32),
    "13b": LlamaShape(hidden=5120, intermediate=13824, layers=40, heads=40),
}


@dataclass(frozen=True)
class LlamaConfig:
    """A decoder of ``shape`` over ``vocabulary`` token ids; input embedding and output head are separate matrices."""

    vocabulary: int
    shape: LlamaShape

    @property
    def parameters(self) -> int:
        """How many numbers the model has."""
        shape = self.shape
        layer = 4 * shape.hidden**2 + 3 * shape.hidden * shape.intermediate + 2 * shape.hidden
        return shape.layers * layer + (2 * self.vocabulary + 1) * shape.hidden


class LlamaLanguageModel(nn.Module):
    """Token ids (B, T) int64 to logits of the next token (B, T, vocabulary). Initialized from N(0, 0.02²)."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.model = _Decoder(config)
        self.lm_head = nn.Linear(config.shape.hidden, config.vocabulary, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.lm_head(self.model(tokens))
        return logits


class _Decoder(nn.Module):
    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        shape = config.shape
        self.shape = shape
        self.embed_tokens = nn.Embedding(config.vocabulary, shape.hidden)
        self.layers = nn.ModuleList(_Layer(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.hidden, eps=shape.norm_eps)

    def forward(self, tokens: Tensor) -> Tensor:  # (B, T) -> (B, T, hidden)
        h = self.embed_tokens(tokens)
        rotation = rotary_angles(tokens.shape[1], self.shape.hidden // self.shape.heads, self.shape.rope_theta, h)
        for layer in self.layers:
            h = layer(h, rotation)
        normed: Tensor = self.norm(h)
        return normed


class _Layer(nn.Module):
    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(shape.hidden, eps=shape.norm_eps)
        self.self_attn = _Attention(shape)
        self.post_attention_layernorm = nn.RMSNorm(shape.hidden, eps=shape.norm_eps)
        self.mlp = _SwiGLU(shape)

    def forward(self, h: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        h = h + self.self_attn(self.input_layernorm(h), rotation)
        out: Tensor = h + self.mlp(self.post_attention_layernorm(h))
        return out


class _Attention(nn.Module):
    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (
            nn.Linear(shape.hidden, shape.hidden, bias=False) for _ in range(4)
        )

    def forward(self, h: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        batch, length, hidden = h.shape
        q, k, v = (
            projection(h).view(batch, length, self.heads, -1).transpose(1, 2)  # (B, heads, T, hidden / heads)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = scaled_dot_product_attention(rotate(q, rotation), rotate(k, rotation), v, is_causal=True)
        out: Tensor = self.o_proj(mixed.transpose(1, 2).reshape(batch, length, hidden))
        return out


class _SwiGLU(nn.Module):
    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden, shape.intermediate, bias=False)
        self.up_proj = nn.Linear(shape.hidden, shape.intermediate, bias=False)
        self.down_proj = nn.Linear(shape.intermediate, shape.hidden, bias=False)

    def forward(self, h: Tensor) -> Tensor:
        out: Tensor = self.down_proj(silu(self.gate_proj(h)) * self.up_proj(h))
        return out


def rotary_angles(length: int, width: int, theta: float, like: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin (length, width / 2) of position * theta^(-2i / width), of the dtype and on the device of ``like``."""
    frequencies = theta ** -(torch.arange(0, width, 2, dtype=torch.float32, device=like.device) / width)
    angles = torch.outer(torch.arange(length, dtype=torch.float32, device=like.device), frequencies)
    return angles.cos().to(like.dtype), angles.sin().to(like.dtype)


def rotate(
    x: Tensor,  # (..., T, width)
    rotation: tuple[Tensor, Tensor],  # (T, width / 2) each
) -> Tensor:
    """Rotate each pair (x_i, x_{i + width/2}) by its position's angle."""
    cos, sin = rotation
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
