"""Training windows changed at random: cropped, and partly shuffled. A window's inputs and targets are cut from what comes out.

Source: Xie et al. 2022, CL4SRec, arXiv 2010.14395, section 3.3 (eqs. 5 and 7). There two changed views of a history are drawn
together; here the model trains on the changed window itself.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class AugmentationConfig:
    """How often windows are changed, anew in each epoch; nothing by default. Both may happen to a window, the crop first."""

    crop: float = 0.0
    """Probability that a window is cropped: a stretch of it stays. What lies outside is neither read nor a target then."""
    crop_share: float = 0.6
    """Of a window's items that a crop keeps, rounded down, two at least (the paper's eta)."""
    shuffle: float = 0.0
    """Probability that a stretch of a window is shuffled; the next item is that of the new order."""
    shuffle_share: float = 0.2
    """Of a window's items that are shuffled, rounded down (the paper's beta); a stretch below two items stays as it is."""

    def __post_init__(self) -> None:
        for name in ("crop", "shuffle"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"augmentation.{name} must lie in [0, 1], not {getattr(self, name)}")
        for name in ("crop_share", "shuffle_share"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"augmentation.{name} must lie in (0, 1], not {getattr(self, name)}")

    @property
    def on(self) -> bool:
        return self.crop > 0 or self.shuffle > 0


def augmented(
    windows: NDArray[np.int64], config: AugmentationConfig, generator: np.random.Generator
) -> NDArray[np.int64]:
    """Windows (B, L) of items, left-padded with 0, changed; (B, L' <= L), as wide as the longest of them."""
    cropped = crop(windows, np.where(_chosen(windows, config.crop, generator), config.crop_share, 1.0), generator)
    return shuffle(cropped, np.where(_chosen(windows, config.shuffle, generator), config.shuffle_share, 0.0), generator)


def crop(windows: NDArray[np.int64], share: NDArray[np.float64], generator: np.random.Generator) -> NDArray[np.int64]:
    """A stretch of each row's items, at a random place: ``share`` (B,) of them, rounded down, at least two (or all there are)."""
    count = (windows > 0).sum(1)
    kept = np.minimum(np.maximum(_part(share, count), 2), count)
    left_out = (generator.random(len(windows)) * (count - kept + 1)).astype(np.int64)  # of the newest items
    width = windows.shape[1]
    longest = int(kept.max(initial=1))
    back = np.arange(longest, 0, -1)  # 1 = the newest that stays
    columns = width - left_out[:, None] - back[None, :]
    inside = back[None, :] <= kept[:, None]
    return np.where(inside, np.take_along_axis(windows, np.where(inside, columns, 0), 1), 0)


def shuffle(
    windows: NDArray[np.int64], share: NDArray[np.float64], generator: np.random.Generator
) -> NDArray[np.int64]:
    """A stretch of each row's items in a random order: ``share`` (B,) of them, rounded down, at a random place."""
    count, width = (windows > 0).sum(1), windows.shape[1]
    moved = _part(share, count)
    first = width - count + (generator.random(len(windows)) * (count - moved + 1)).astype(np.int64)
    column = np.arange(width)[None, :]
    inside = (column >= first[:, None]) & (column < (first + moved)[:, None])
    within = first[:, None] + generator.random(windows.shape) * moved[:, None]  # in [first, first + moved)
    order = np.argsort(np.where(inside, within, column), axis=1, kind="stable")
    return np.take_along_axis(windows, order, 1)


def _part(share: NDArray[np.float64], count: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.floor(share * count + 1e-9).astype(np.int64)


def _chosen(windows: NDArray[np.int64], probability: float, generator: np.random.Generator) -> NDArray[np.bool_]:
    return generator.random(len(windows)) < probability
