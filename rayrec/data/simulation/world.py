"""The world behind the logs: users, ads, and the true logits of click and conversion of any user-ad pair at any time.

Every driver of the truth is a function of logged features (ids, segment x category, share of the history in the ad's category,
device, hour, early and late signals), except the drift of campaigns: a model of all features can learn it, one without the
late signals cannot.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rayrec.data.simulation.config import WorldConfig

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]

DEVICES = ("phone", "desktop", "tablet")
WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
FIRST_SECOND = 1_735_516_800  # Monday 2024-12-30 00:00 UTC, when each simulation begins
_DEVICE_SHARES = (0.7, 0.22, 0.08)
_DAY_MINUTES = 1440


@dataclass(frozen=True)
class Requests:
    """R requests in order of time. Indices (R,) int64: user, segment, device, hour, weekday (0 = Monday).

    timestamp: (R,) int64, Unix seconds. progress: (R,) float32 from -1 (start of the period) to 1 (its end).
    history: (R, history_length) int64, categories, oldest first; ``history_lengths`` (R,) int64 of them count.
    """

    user: Indices
    segment: Indices
    device: Indices
    hour: Indices
    weekday: Indices
    timestamp: Indices
    progress: Floats
    history: Indices
    history_lengths: Indices

    def __len__(self) -> int:
        return len(self.user)


@dataclass(frozen=True)
class Candidates:
    """P candidates of each of R requests. Indices (R, P) int64: ad, campaign, advertiser, category.

    interest_match: (R, P) float32, share of the user's history in the ad's category.
    early_signals, late_signals, noise_signals: (S, R, P) float32 in logged units, NaN = missing.
    known_logit: (R, P) float32, what all but the late signals add up to. click_logit: with the late signals, the truth.
    conversion_logit: (R, P) float32, the true logit of a conversion given a click.
    """

    ad: Indices
    campaign: Indices
    advertiser: Indices
    category: Indices
    interest_match: Floats
    early_signals: Floats
    late_signals: Floats
    noise_signals: Floats
    known_logit: Floats
    click_logit: Floats
    conversion_logit: Floats


class World:
    """All tables of a world, drawn once from ``generator``; its methods draw only from the generator they are given."""

    def __init__(self, config: WorldConfig, generator: np.random.Generator) -> None:
        self.config = config
        c, normal = config, generator.standard_normal
        self.segment_of_user = generator.integers(0, c.segments, c.users)
        self.advertiser_of_campaign = _spread(c.campaigns, c.advertisers, generator)
        self.category_of_campaign = generator.integers(0, c.categories, c.campaigns)
        self.campaign_of_ad = _spread(c.ads, c.campaigns, generator)
        refreshed = generator.random(c.ads) < c.refreshed_ads
        self.refresh_progress = np.where(refreshed, generator.uniform(-1, 1, c.ads), np.inf).astype(np.float32)
        # A refreshed creative has index ads + slot: the same campaign, an effect of its own.
        self.campaign_of_ad = np.tile(self.campaign_of_ad, 2)
        creative = c.ad_effect / np.sqrt(3) * normal(2 * c.ads)
        campaign = c.ad_effect / np.sqrt(3) * normal(c.campaigns)
        advertiser = c.ad_effect / np.sqrt(3) * normal(c.advertisers)
        campaign += advertiser[self.advertiser_of_campaign]
        self.ad_effect = (creative + campaign[self.campaign_of_ad]).astype(np.float32)
        self.user_effect = (c.user_effect * normal(c.users)).astype(np.float32)
        self.affinity = (c.affinity_effect * normal((c.segments, c.categories))).astype(np.float32)
        self.device_effect = (c.context_effect * normal(len(DEVICES))).astype(np.float32)
        self.hour_effect = (c.context_effect * normal(24)).astype(np.float32)
        self.drift = (c.drift * normal(c.campaigns)).astype(np.float32)
        self.log_bid = normal(c.campaigns).astype(np.float32)  # in units of FunnelConfig.bid_spread
        self.early_weights = _direction(c.early_signals, generator) * np.float32(c.early_signal_effect)
        self.late_weights = _direction(c.late_signals, generator) * np.float32(c.late_signal_effect)
        self.conversion_early_weights = _direction(c.early_signals, generator) * np.float32(c.conversion_effect)
        self.conversion_late_weights = _direction(c.late_signals, generator) * np.float32(c.conversion_effect)
        self.conversion_advertiser = (c.conversion_effect * normal(c.advertisers)).astype(np.float32)
        self.interests = _interests(c, self.segment_of_user, generator)  # (users, categories), cumulative
        self.networks: tuple[_Network, _Network] | None = None  # of the early and of the late signals
        if c.signal_form == "network":
            early = _Network(c.early_signals, c.early_signal_effect, generator)
            self.networks = early, _Network(c.late_signals, c.late_signal_effect, generator)
        self._strides = np.flatnonzero(np.gcd(np.arange(c.ads), c.ads) == 1) if c.ads > 1 else np.zeros(1, np.int64)
        self._day_curve = _cumulative_day()

    def requests(self, first: int, last: int, total: int, generator: np.random.Generator) -> Requests:
        """Requests ``first`` to ``last`` of ``total``, which fill the period: few at night, many in the evening."""
        config, count = self.config, last - first
        day, fraction = np.divmod((np.arange(first, last) + generator.random(count)) / total * config.days, 1.0)
        minute = np.interp(fraction, self._day_curve, np.arange(_DAY_MINUTES + 1))
        user = (config.users * generator.random(count) ** 2).astype(np.int64)  # some users come often
        lengths = generator.integers(0, config.history_length + 1, count)
        draws = generator.random((count, config.history_length), dtype=np.float32)
        history = (draws[:, :, None] > self.interests[user][:, None, :-1]).sum(2)  # inverse cumulative distribution
        return Requests(
            user=user,
            segment=self.segment_of_user[user],
            device=np.searchsorted(np.cumsum(_DEVICE_SHARES)[:-1], generator.random(count)),
            hour=np.minimum(minute // 60, 23).astype(np.int64),
            weekday=day.astype(np.int64) % 7,
            timestamp=FIRST_SECOND + (day * 86_400 + minute * 60).astype(np.int64),
            progress=((day + minute / _DAY_MINUTES) / config.days * 2 - 1).astype(np.float32),
            history=history,
            history_lengths=lengths,
        )

    def eligible_ads(self, requests: Requests, count: int, generator: np.random.Generator) -> Indices:
        """(R, count) ads live at each request, all different: a random stride through all ads from a random start."""
        ads, rows = self.config.ads, len(requests)
        stride = self._strides[generator.integers(0, len(self._strides), (rows, 1))]
        slots = (generator.integers(0, ads, (rows, 1)) + stride * np.arange(count)) % ads
        return slots + ads * (requests.progress[:, None] >= self.refresh_progress[slots])

    def retrieval_logit(self, requests: Requests, ads: Indices) -> Floats:
        """(R, E) what retrieval knows of the true logit: ad, and segment x category."""
        category = self.category_of_campaign[self.campaign_of_ad[ads]]
        return self.ad_effect[ads] + self.affinity[requests.segment[:, None], category]

    def candidates(self, requests: Requests, ads: Indices, generator: np.random.Generator) -> Candidates:
        """Features and truth of (R, P) ads."""
        config, shape = self.config, ads.shape
        campaign = self.campaign_of_ad[ads]
        advertiser, category = self.advertiser_of_campaign[campaign], self.category_of_campaign[campaign]
        match = _history_shares(requests, config.categories)[np.arange(shape[0])[:, None], category]
        early = generator.standard_normal((config.early_signals, *shape), dtype=np.float32)
        late = generator.standard_normal((config.late_signals, *shape), dtype=np.float32)
        noise = generator.standard_normal((config.noise_signals, *shape), dtype=np.float32)
        missing = generator.random(shape, dtype=np.float32) < config.missing_share
        early[-1][missing] = 0.0

        per_request = self.user_effect[requests.user] + self.device_effect[requests.device]
        per_request += self.hour_effect[requests.hour] + _logit(config.base_click_probability)
        known = per_request[:, None] + self.retrieval_logit(requests, ads)
        known += np.float32(config.history_effect) * (match - np.float32(1 / config.categories))
        known += self.drift[campaign] * requests.progress[:, None]
        known += _weighted_sum(self.early_weights, early) if self.networks is None else self.networks[0](early)
        if config.early_signals > 1:
            known += np.float32(config.interaction_effect) * early[0] * early[1]
        conversion = _logit(config.base_conversion_probability) + self.conversion_advertiser[advertiser]
        conversion += _weighted_sum(self.conversion_early_weights, early)
        conversion += _weighted_sum(self.conversion_late_weights, late)
        click = known + (_weighted_sum(self.late_weights, late) if self.networks is None else self.networks[1](late))

        for signal in early[1::2]:
            signal[:] = np.expm1(np.maximum(2.0 + 0.5 * signal, 0.0))  # a count; log1p gives the signal back, shifted
        early[-1][missing] = np.nan
        return Candidates(
            ad=ads,
            campaign=campaign,
            advertiser=advertiser,
            category=category,
            interest_match=match,
            early_signals=early,
            late_signals=late,
            noise_signals=noise,
            known_logit=known,
            click_logit=click,
            conversion_logit=conversion,
        )


class _Network:
    """effect * (sum_h v_h tanh(a_h . x + b_h) - mean) / deviation, mean and deviation being those over standard normal x."""

    def __init__(self, signals: int, effect: float, generator: np.random.Generator, hidden: int = 8) -> None:
        self.inner = [np.float32(2.0) * _direction(signals, generator) for _ in range(hidden)]
        self.offsets = generator.standard_normal(hidden).astype(np.float32)
        self.outer = generator.standard_normal(hidden).astype(np.float32)
        self.shift, self.scale = np.float32(0.0), np.float32(1.0)
        sample = self(generator.standard_normal((signals, 100_000), dtype=np.float32))
        self.shift, self.scale = np.float32(sample.mean()), np.float32(effect / sample.std())

    def __call__(self, signals: Floats) -> Floats:
        """(...) of (S, ...)."""
        total = np.zeros_like(signals[0])
        for a, b, v in zip(self.inner, self.offsets, self.outer, strict=True):
            total += v * np.tanh(_weighted_sum(a, signals) + b)
        return (total - self.shift) * self.scale


def _logit(probability: float) -> np.float32:
    return np.float32(np.log(probability / (1 - probability)))


def _spread(members: int, groups: int, generator: np.random.Generator) -> Indices:
    """The group of each member: none empty, sizes about equal, order random."""
    return generator.permutation(np.arange(members) % groups)


def _direction(size: int, generator: np.random.Generator) -> Floats:
    """A random unit vector."""
    vector = generator.standard_normal(size)
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def _weighted_sum(weights: Floats, signals: Floats) -> Floats:
    """(R, P) of (S,), (S, R, P). One signal after another, so that it does not depend on the threads of a BLAS."""
    total = weights[0] * signals[0]
    for weight, signal in zip(weights[1:], signals[1:], strict=True):
        total += weight * signal
    return total


def _interests(config: WorldConfig, segment_of_user: Indices, generator: np.random.Generator) -> Floats:
    """(users, categories): cumulative probabilities of the category of what a user does; half of it by segment."""
    of_segment = generator.standard_normal((config.segments, config.categories), dtype=np.float32)
    logits = (
        generator.standard_normal((config.users, config.categories), dtype=np.float32) + of_segment[segment_of_user]
    )
    weights = np.exp(logits)
    cumulative: Floats = np.cumsum(weights / weights.sum(1, keepdims=True), axis=1, dtype=np.float32)
    return cumulative


def _history_shares(requests: Requests, categories: int) -> Floats:
    """(R, categories): share of each category in each history; 0 where it is empty."""
    rows, length = requests.history.shape
    counted = np.arange(length) < requests.history_lengths[:, None]
    cells = (np.arange(rows)[:, None] * categories + requests.history)[counted]
    counts = np.bincount(cells, minlength=rows * categories).reshape(rows, categories)
    return (counts / np.maximum(requests.history_lengths, 1)[:, None]).astype(np.float32)


def _cumulative_day() -> NDArray[np.float64]:
    """(1441,): share of a day's requests before each minute; least at 4 in the morning, most at 16."""
    minutes = np.arange(_DAY_MINUTES) + 0.5
    density = 1 - 0.6 * np.cos(2 * np.pi * (minutes / _DAY_MINUTES - 4 / 24))
    return np.concatenate([[0.0], np.cumsum(density) / density.sum()])
