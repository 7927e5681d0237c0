"""Judges a trained language model on a split of a corpus, and lets it write."""

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from rayrec.data.log.streams import LogStream, StreamConfig
from rayrec.families.language_model.bundle import LanguageModelBundle, load_language_model
from rayrec.families.language_model.experiment import LanguageModelExperiment, open_corpus
from rayrec.families.language_model.task import LanguageModellingTask
from rayrec.reporting import Table
from rayrec.reporting.page import metrics_table
from rayrec.training.judging import judge_stream
from rayrec.typed_json import ConfigError, from_plain


@dataclass(frozen=True)
class EvaluateLanguageModel:
    """Judge a language model, or let it write on."""

    split: Literal["train", "valid", "test"] = "test"
    """Which part of the corpus."""
    corpus: Path | None = None
    """Folder of the corpus; None = the one that it was trained on; another must have the same tokenizer."""
    prompt: str | None = None
    """Write on from this text instead of judging ("" = from the start of a document)."""
    tokens: int = 64
    """How long a written text is."""
    temperature: float = 0.8
    """How freely its tokens are drawn; 0 = the likeliest one."""
    seed: int = 0
    """Of the drawing."""

    def evaluate(self, folder: Path) -> Table:
        """Perplexity, or the written text. Raises BundleError, LogError or ConfigError that names what does not fit."""
        bundle = load_language_model(folder)
        if self.prompt is not None:
            written = sample(bundle, self.prompt, tokens=self.tokens, temperature=self.temperature, seed=self.seed)
            return Table(("text",), ((written,),))
        experiment = from_plain(LanguageModelExperiment, dict(bundle.metadata.run_config), f"{bundle.path}: run_config")
        log, tokenizer = open_corpus(self.corpus or experiment.corpus)
        if tokenizer.json != bundle.tokenizer.json:
            raise ConfigError(
                f"{log.path}: tokenized otherwise than the model was trained; perplexities would not compare"
            )
        stream = StreamConfig(experiment.stream.batch_size, shuffle=False, drop_last=False)
        with closing(LogStream(log, self.split, stream)) as batches:
            task = LanguageModellingTask(bundle.model.config)
            return metrics_table(judge_stream(task, bundle.model, batches.epoch_batches()))


@torch.no_grad()
def sample(bundle: LanguageModelBundle, prompt: str, *, tokens: int, temperature: float, seed: int) -> str:
    """``prompt`` and at most ``tokens`` further tokens, up to the end of the document. Raises ConfigError for bad options."""
    if tokens < 1 or temperature < 0:
        raise ConfigError(f"sampling needs tokens >= 1 and temperature >= 0, not {tokens} and {temperature}")
    generator = torch.Generator().manual_seed(seed)
    separator = bundle.tokenizer.separator
    ids = [separator, *bundle.tokenizer.encode([prompt])[0]]
    for _ in range(tokens):
        logits = bundle.model(torch.tensor([ids]))[0, -1].float()  # (V,)
        if temperature == 0:
            drawn = int(logits.argmax())
        else:
            drawn = int(torch.multinomial((logits / temperature).softmax(0), 1, generator=generator))
        if drawn == separator:
            break
        ids.append(drawn)
    return bundle.tokenizer.decode(ids[1:])
