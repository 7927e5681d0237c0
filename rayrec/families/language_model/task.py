"""The language-modelling task: predict each next token of a block, judged by perplexity."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from rayrec.batch import Batch
from rayrec.metrics.perplexity import Perplexity
from rayrec.models.llama import LlamaConfig, LlamaLanguageModel
from rayrec.training.task import Evaluation, LeftOut, Loss, Summary
from rayrec.typed_json import ConfigError

TEXT = "text"  # the name under which a language model's metrics are reported


@dataclass(frozen=True)
class LanguageModellingTask:
    """Batches are blocks of T + 1 consecutive tokens, ``batch.sequences[0]`` (B, T + 1); see ``rayrec.data.text_stream``."""

    model_config: LlamaConfig

    curve_metrics = ("perplexity", "cross_entropy")

    @property
    def methods(self) -> nn.Module:
        return nn.Module()

    def build(self) -> LlamaLanguageModel:
        return LlamaLanguageModel(self.model_config)

    def sizes(self, model: nn.Module, batch: Batch, unlabeled: Batch | None = None) -> Tensor:
        tokens = batch.sequences[0]
        return torch.tensor([len(tokens) * (tokens.shape[1] - 1)], device=tokens.device)

    def loss(
        self, model: nn.Module, batch: Batch, unlabeled: Batch | None = None, joint_sizes: Tensor | None = None
    ) -> Loss:
        """Mean cross-entropy in nats over the T predicted tokens of each block."""
        losses = token_losses(model, batch.sequences[0])
        total = losses.mean()
        if joint_sizes is not None:
            total = total * (losses.numel() / joint_sizes[0]).to(total.dtype)
        return Loss(total, {"loss": total.detach()}, losses.detach())

    def predict(self, model: nn.Module, batch: Batch) -> Tensor:
        return token_losses(model, batch.sequences[0])

    def evaluation(self, *, by_group: bool = False) -> "TextEvaluation":
        """Sums by group of blocks are kept in any case."""
        return TextEvaluation()

    def objective(self, summary: Mapping[str, Mapping[str, float | None]]) -> float:
        """Perplexity. Raises ConfigError when no token was judged."""
        value = summary[TEXT]["perplexity"]
        if value is None:
            raise ConfigError("perplexity is undefined: the split has no block")
        return value

    @property
    def objective_name(self) -> str:
        return "valid/perplexity"

    @property
    def objective_mode(self) -> Literal["min", "max"]:
        return "min"


class TextEvaluation(Evaluation[Batch]):
    """Losses of tokens."""

    def __init__(self) -> None:
        self.metrics: Perplexity = Perplexity()

    def update(self, outputs: Tensor, batch: Batch) -> None:
        self.metrics.update(outputs)

    def summarize(self) -> Summary:
        """tokens, cross_entropy (nats a token) and perplexity of the text; None where there was none."""
        result = self.metrics.compute()
        judged = result.tokens > 0
        return {
            TEXT: {
                "tokens": result.tokens,
                "cross_entropy": result.cross_entropy if judged else None,
                "perplexity": result.perplexity if judged else None,
            }
        }

    def left_out(self) -> LeftOut:
        return {TEXT: self.metrics.left_out()}


def token_losses(
    model: nn.Module,
    tokens: Tensor,  # (B, T + 1) int64
) -> Tensor:  # (B, T)
    """Negative log likelihood in nats of each token after the first, given those before it in its block."""
    logits = model(tokens[:, :-1])  # (B, T, V)
    losses = cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten(), reduction="none")
    return losses.view(len(tokens), -1)
