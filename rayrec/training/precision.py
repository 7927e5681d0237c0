"""Which bits the matrix products of training run in."""

from typing import Literal

import torch

Precision = Literal["auto", "float32", "bfloat16"]


def runs_in_bf16(precision: Precision, device: torch.device) -> bool:
    """Whether training on ``device`` runs under bf16 autocast; "auto" does so on GPUs that have units for it."""
    if precision == "auto":
        return device.type == "cuda" and has_bf16_units(device)
    return precision == "bfloat16"


def has_bf16_units(device: torch.device) -> bool:
    """Whether the GPU, or this machine's CPU (AMX, AVX512-BF16, or ARM's), multiplies in bfloat16 itself."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return any(there for name, there in torch.cpu.get_capabilities().items() if "bf16" in name)
