"""The funnel: retrieval, early-stage ranker, late-stage ranker, auction, impression, click, conversion.

Simulated in blocks of ``REQUESTS_PER_BLOCK`` requests, each with a generator of its own seeded by (seed, block): the same rows
come out whatever the number of threads, the order of blocks or the size of files.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rayrec.data.simulation.config import FunnelConfig, SimulationConfig
from rayrec.data.simulation.world import Candidates, Floats, Requests, World

REQUESTS_PER_BLOCK = 512
STAGES = ("early_stage", "late_stage", "auction", "impression")
"""The last stage that a candidate reached, by its code: it was cut there, or shown."""
EARLY_STAGE, LATE_STAGE, AUCTION, IMPRESSION = range(4)


@dataclass(frozen=True)
class Block:
    """R requests with P candidates each. ``first_request``: number of the first one; all else (R, P).

    early_score, late_score: float32 click probabilities as the two stages estimate them. early_logit: float32, the early
    stage's noisy logit of what it sees, before the late signals are averaged out. bid: float32, money per click.
    stage: int8 codes, see STAGES. click, conversion: bool, drawn from the true probabilities for every candidate, shown or not.
    kept: bool, whether the unlabeled log keeps the candidate if it was not shown.
    """

    first_request: int
    requests: Requests
    candidates: Candidates
    click_probability: Floats
    conversion_probability: Floats
    early_logit: Floats
    early_score: Floats
    late_score: Floats
    bid: Floats
    stage: NDArray[np.int8]
    click: NDArray[np.bool_]
    conversion: NDArray[np.bool_]
    kept: NDArray[np.bool_]


def run_funnel(early_score: Floats, late_score: Floats, bid: Floats, config: FunnelConfig) -> NDArray[np.int8]:
    """The stage that each candidate reaches, (R, P) int8 codes, from (R, P) scores of the two rankers and bids.

    Replays the funnel with other scores: give it those of a trained early-stage ranker. Raises ValueError when P is less than
    the early stage keeps.
    """
    if early_score.shape[1] < config.early_keep:
        raise ValueError(f"{early_score.shape[1]} candidates a request; the early stage keeps {config.early_keep}")
    stage = np.zeros(early_score.shape, np.int8)
    early = _best(early_score, config.early_keep)
    np.put_along_axis(stage, early, LATE_STAGE, axis=1)
    late = np.take_along_axis(early, _best(np.take_along_axis(late_score, early, 1), config.late_keep), 1)
    np.put_along_axis(stage, late, AUCTION, axis=1)
    value = np.take_along_axis(bid * late_score, late, 1)
    won = _best(value, config.slots)
    reached = np.where(np.take_along_axis(value, won, 1) >= config.reserve_value, IMPRESSION, AUCTION).astype(np.int8)
    np.put_along_axis(stage, np.take_along_axis(late, won, 1), reached, axis=1)
    return stage


class Simulator:
    """Draws blocks of a simulation in any order, from any thread. Reads ``config``; holds the world."""

    def __init__(self, config: SimulationConfig) -> None:
        self.config = config
        self.world = World(config.world, _generator(config.seed, 0))
        self.blocks = -(-config.requests // REQUESTS_PER_BLOCK)
        self._early_score = MarginalProbability(config.world.late_signal_effect)

    def block(self, number: int) -> Block:
        """Block ``number`` of ``blocks``."""
        config, funnel, world = self.config, self.config.funnel, self.world
        generator = _generator(config.seed, 1, number)
        first = number * REQUESTS_PER_BLOCK
        last = min(first + REQUESTS_PER_BLOCK, config.requests)
        requests = world.requests(first, last, config.requests, generator)
        eligible = world.eligible_ads(requests, funnel.eligible, generator)
        retrieval = world.retrieval_logit(requests, eligible) + _noise(
            funnel.retrieval_noise, eligible.shape, generator
        )
        pool = np.take_along_axis(eligible, _best(retrieval, funnel.pool), 1)

        candidates = world.candidates(requests, pool, generator)
        early_logit = candidates.known_logit + _noise(funnel.early_noise, pool.shape, generator)
        early_score = self._early_score(early_logit)
        late_score = sigmoid(candidates.click_logit + _noise(funnel.late_noise, pool.shape, generator))
        log_bid = np.float32(funnel.bid_spread) * world.log_bid[candidates.campaign]
        bid = np.exp(log_bid + _noise(funnel.bid_noise, pool.shape, generator))
        click_probability = sigmoid(candidates.click_logit)
        conversion_probability = sigmoid(candidates.conversion_logit)
        click = generator.random(pool.shape, dtype=np.float32) < click_probability
        return Block(
            first_request=first,
            requests=requests,
            candidates=candidates,
            click_probability=click_probability,
            conversion_probability=conversion_probability,
            early_logit=early_logit,
            early_score=early_score,
            late_score=late_score,
            bid=bid,
            stage=run_funnel(early_score, late_score, bid, funnel),
            click=click,
            conversion=click & (generator.random(pool.shape, dtype=np.float32) < conversion_probability),
            kept=generator.random(pool.shape, dtype=np.float32) < config.unlabeled_share,
        )


class MarginalProbability:
    """E sigmoid(z + spread * g), g standard normal: the click probability given all but the late signals, which are normal.

    Gauss-Hermite quadrature on a grid of z, linear in between; the error is below 1e-6.
    """

    def __init__(self, spread: float) -> None:
        nodes, weights = np.polynomial.hermite_e.hermegauss(41)
        self._grid = np.linspace(-30.0, 30.0, 12_001)
        points = self._grid[:, None] + spread * nodes
        self._values = (weights / weights.sum() / (1 + np.exp(-points))).sum(1)

    def __call__(self, logit: Floats) -> Floats:
        return np.interp(logit, self._grid, self._values).astype(np.float32)


def sigmoid(logit: Floats) -> Floats:
    """1 / (1 + exp(-logit)), float32."""
    with np.errstate(over="ignore"):  # exp overflows to infinity where the probability is 0
        return np.float32(1) / (np.float32(1) + np.exp(-logit))


def _generator(seed: int, *key: int) -> np.random.Generator:
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence(seed, spawn_key=key)))


def _noise(spread: float, shape: tuple[int, ...], generator: np.random.Generator) -> Floats:
    return np.float32(spread) * generator.standard_normal(shape, dtype=np.float32)


def _best(scores: Floats, count: int) -> NDArray[np.int64]:
    """(R, count): columns of the highest scores of each row, in no order."""
    if count == scores.shape[1]:
        return np.broadcast_to(np.arange(count), scores.shape)
    return np.argpartition(scores, scores.shape[1] - count, axis=1)[:, -count:]
