"""A language model whose vocabulary is extended by the tokens of semantic IDs, the baseline of Mender (arXiv 2412.08604).

After LC-Rec (arXiv 2311.09049), without its further tasks: the prompt is MenderTok's, but an item stands in it as its own tokens,
which have embeddings beside the words', and not as its title. So it knows items by their IDs alone, as TIGER does, and wishes by
their words. The encoder is pretrained or drawn at random; the decoder is TIGER's, from scratch, as small encoders have none.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from rayrec.models.catalogue import Catalogue, ItemFeatures
from rayrec.models.mender import MenderTok, MenderTokConfig, Tune
from rayrec.models.prompt import NONE, Prompt, PromptTokens


@dataclass(frozen=True)
class ExtendedLMConfig(MenderTokConfig):
    """See ``MenderTokConfig``; tune "full" is what the paper does, "frozen" is none: the encoder must learn the new
    tokens."""

    tune: Tune = "full"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tune == "frozen":
            raise ValueError("tune must be lora or full: a frozen encoder has never met the tokens of items")

    def build(self, catalogue: Catalogue) -> "ExtendedLM":
        assert catalogue.features is not None  # needs_semantic_ids
        assert catalogue.prompts is not None  # reads_preferences
        return ExtendedLM(catalogue.features, catalogue.prompts.build_encoder(), catalogue.prompts.tokens, self)


class ExtendedLM(MenderTok):
    """The word ids of the encoder go up to ``words``; from there on ids are the items' tokens.

    encoder: called with inputs_embeds (B, K, E) and attention_mask; gives ``last_hidden_state`` (B, K, E), and by
    ``get_input_embeddings()`` its table of words.
    """

    def __init__(self, items: ItemFeatures, encoder: nn.Module, tokens: PromptTokens, config: ExtendedLMConfig) -> None:
        table = encoder.get_input_embeddings()  # type: ignore[operator]
        spoken = items.tokens + table.num_embeddings
        spoken[0] = NONE
        super().__init__(items, encoder, Prompt(replace(tokens, titles=spoken)), config)
        self.words = int(table.num_embeddings)
        self.item_words = nn.Embedding(items.num_tokens, table.embedding_dim)
        self.item_words.weight.data.normal_().mul_(table.weight.detach().std())

    def _encoded(self, ids: Tensor, real: Tensor) -> Tensor:
        item = ids >= self.words
        words = self.text_encoder.get_input_embeddings()(ids.masked_fill(item, 0))  # type: ignore[operator]
        items = self.item_words((ids - self.words).clamp_min(0))
        mixed = torch.where(item.unsqueeze(2), items, words)
        states: Tensor = self.text_encoder(inputs_embeds=mixed, attention_mask=real.long()).last_hidden_state
        return states
