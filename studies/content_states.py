"""A frozen text encoder's token states, cut to their first principal components and kept on disk for many runs of a study."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rayrec.data.content.lists import Lists
from rayrec.families.content.task import ContentTask
from rayrec.models.content_encoder import Body
from rayrec.models.content_inputs import ContentBatch, pad_texts
from rayrec.models.content_ranker import ContentRanker
from rayrec.training.task import Loss

_SAMPLE = 2000  # texts that the components are fitted on
_TOGETHER = 128  # texts read at once


class KeptTask(ContentTask):
    """The task over kept states (L, D) by a text's key; ``model``: what was built last.

    written: (V,) sorted ids; EmbSum's decoder knows no others, which saves most of its time.
    """

    def __init__(self, plain: ContentTask, states: dict[int, Tensor], written: Tensor) -> None:
        v = plain.vocabulary
        self._states, self.written = states, written
        self._places = torch.full((v.size,), -1).scatter(0, written, torch.arange(len(written)))
        start, end = (int(self._places[one]) for one in (v.start, v.end))
        super().__init__(plain.config, replace(v, size=len(written), start=start, end=end))

    def loss(
        self, model: ContentRanker, batch: ContentBatch, unlabeled: ContentBatch | None = None,
        joint_sizes: Tensor | None = None,
    ) -> Loss:  # fmt: skip
        told = batch.summaries
        tokens = torch.where(told.real, self._places[told.tokens], 0)
        return super().loss(model, replace(batch, summaries=replace(told, tokens=tokens)), unlabeled, joint_sizes)

    def build(self) -> ContentRanker:
        self.model, width = super().build(), next(iter(self._states.values())).shape[1]
        encoder = self.model.encoder
        encoder.body, encoder.project = _Kept(width), nn.Linear(width, encoder.config.dim)
        encoder.keep_states_in(self._states)
        return self.model


class _Kept(Body):
    """Stands where the frozen encoder was: all of its states are kept."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, tokens: Tensor, real: Tensor) -> Tensor:
        raise AssertionError("a text whose states were not kept")


def kept_states(file: Path, task: ContentTask, items: Lists, texts: Lists | None, components: int) -> dict[int, Tensor]:
    """By key, 1.. of items and -1.. of users' texts, states (L, components); from ``file``, which is made where it is not there.

    The components are those of the token states of some items, scaled so that a state's squares have the mean 1.
    """
    rows = [items[row].tolist() for row in range(len(items))]
    keys = list(range(1, 1 + len(items)))
    if texts is not None:
        rows += [texts[row].tolist() for row in range(len(texts))]
        keys += list(range(-1, -1 - len(texts), -1))
    if not file.is_file():
        body = task.build().encoder.body.eval()
        fitted = np.random.default_rng(0).choice(len(items), min(_SAMPLE, len(items)), replace=False)
        sample = torch.cat(_read(body, [rows[row] for row in fitted]))
        mean = sample.mean(0)
        basis = torch.linalg.eigh((sample - mean).T @ (sample - mean)).eigenvectors[:, -components:]
        basis = basis / ((sample - mean) @ basis).square().mean().sqrt()
        flat = [
            (states - mean) @ basis
            for start in range(0, len(rows), 1024)
            for states in _read(body, rows[start : start + 1024])
        ]
        partial = file.with_suffix(".partial")
        save_file({"states": torch.cat(flat)}, partial)
        partial.rename(file)
    parts = load_file(file)["states"].split([max(1, len(row)) for row in rows])
    return dict(zip(keys, parts, strict=True))


@torch.no_grad()
def _read(body: nn.Module, rows: list[list[int]]) -> list[Tensor]:
    """States (L, D) of each text, one row where it is empty."""
    found: list[Tensor] = [torch.empty(0)] * len(rows)
    order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
    for start in range(0, len(order), _TOGETHER):
        some = order[start : start + _TOGETHER]
        texts = pad_texts([rows[row] for row in some])
        states = body(texts.tokens, texts.real)
        for row, own in zip(some, states, strict=True):
            found[row] = own[: max(1, len(rows[row]))].clone()
    return found
