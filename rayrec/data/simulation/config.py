"""What a simulated ads world is made of: its inhabitants, its truth, its funnel, its size. All effects are in logit units."""

from dataclasses import dataclass, field, fields
from typing import ClassVar, Literal

from pydantic import ConfigDict

from rayrec.typed_json import ConfigError

_STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True)
class WorldConfig:
    """Users, ads and the true probabilities of click and (given click) conversion.

    An effect is the standard deviation over its entities of what it adds to the true logit of a click, unless said otherwise.
    """

    users: int = 20_000
    """How many there are."""
    ads: int = 2_000
    """How many there are, spread over campaigns."""
    campaigns: int = 400
    """How many there are, spread over advertisers."""
    advertisers: int = 100
    """How many there are."""
    categories: int = 24
    """Of ads; each ad has one."""
    segments: int = 12
    """Of users; each user has one."""
    days: int = 10
    """Length of the simulated period."""
    history_length: int = 10
    """Longest history (categories of what the user did lately); the length is uniform from 0 to it."""
    early_signals: int = 8
    """Dense user-ad features that every stage sees; every second one is a count, to be scaled by log1p."""
    late_signals: int = 8
    """Dense user-ad features that only the late stage sees; they are what the early-stage ranker cannot know."""
    noise_signals: int = 0
    """Dense features without any effect, seen by every stage (for feature selection)."""
    base_click_probability: float = 0.006
    """Of a candidate all of whose effects are 0."""
    base_conversion_probability: float = 0.08
    """Of a clicked candidate all of whose effects are 0."""
    user_effect: float = 0.3
    """Of the user."""
    ad_effect: float = 0.4
    """Of the ad: advertiser, campaign and creative."""
    affinity_effect: float = 0.35
    """Of segment x category."""
    history_effect: float = 1.5
    """What a history wholly in the ad's category adds, more than one without it."""
    context_effect: float = 0.1
    """Of device and hour each."""
    early_signal_effect: float = 0.85
    """Of all early signals together."""
    late_signal_effect: float = 0.5
    """Of all late signals together."""
    signal_form: Literal["linear", "network"] = "linear"
    """How the signals make up the logit of a click: a weighted sum of the early and one of the late ones; or a random network
    of one hidden layer of each, of the same mean and deviation, which no linear model of the logged features is right about.
    The early stage takes the late part for normal in both."""
    interaction_effect: float = 0.15
    """Of the product of the first two early signals (0 with fewer than two)."""
    conversion_effect: float = 0.4
    """Of each: advertiser, early signals, late signals, on the logit of a conversion given a click."""
    drift: float = 0.2
    """Of the campaign at the end of the period (minus that at its start, straight in between); 0 = a world at rest."""
    refreshed_ads: float = 0.2
    """Share of ads that are replaced by a new creative with an id and effect of its own at a random time."""
    missing_share: float = 0.02
    """Share of candidates whose last early signal is missing (it then has no effect)."""
    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    def __post_init__(self) -> None:
        for name in ("users", "ads", "campaigns", "advertisers", "categories", "segments", "days"):
            _at_least(self, name, 1)
        for name in ("history_length", "early_signals", "late_signals"):
            _at_least(self, name, 1)
        _at_least(self, "noise_signals", 0)
        for item in fields(self):
            if item.name.endswith("_effect") or item.name == "drift":
                _at_least(self, item.name, 0.0)
        for name in ("base_click_probability", "base_conversion_probability"):
            if not 0 < getattr(self, name) < 1:
                raise ConfigError(f"{name} must lie between 0 and 1, both excluded, not {getattr(self, name)}")
        for name in ("refreshed_ads", "missing_share"):
            _share(self, name)
        if not self.advertisers <= self.campaigns <= self.ads:
            raise ConfigError(
                f"a world needs advertisers <= campaigns <= ads, not {self.advertisers}, {self.campaigns}, {self.ads}"
            )


@dataclass(frozen=True)
class FunnelConfig:
    """How candidates become impressions. Each stage passes on the best of a request by its own noisy view."""

    eligible: int = 80
    """Ads that targeting lets in, drawn at random."""
    pool: int = 40
    """How many of them retrieval keeps, by ad, segment x category and noise; the candidates of the early stage."""
    early_keep: int = 20
    """How many the early-stage ranker keeps, by early_stage_score (click probability given what it sees)."""
    late_keep: int = 8
    """How many the late-stage ranker keeps, by late_stage_score (all features)."""
    slots: int = 2
    """How many of these the auction shows: the highest bid * late_stage_score of at least ``reserve_value``."""
    retrieval_noise: float = 0.5
    """Standard deviation of retrieval's error, in logits."""
    early_noise: float = 0.3
    """Standard deviation of the early stage's error, in logits."""
    late_noise: float = 0.2
    """Standard deviation of the late stage's error, in logits."""
    bid_spread: float = 0.5
    """Standard deviation of the log bid over campaigns."""
    bid_noise: float = 0.1
    """Standard deviation of the log bid over requests of one campaign."""
    reserve_value: float = 0.0
    """Value below which no ad is shown."""
    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    def __post_init__(self) -> None:
        counts = (self.slots, self.late_keep, self.early_keep, self.pool, self.eligible)
        if not 1 <= self.slots <= self.late_keep <= self.early_keep <= self.pool <= self.eligible:
            raise ConfigError(
                "a funnel narrows: it needs 1 <= slots <= late_keep <= early_keep <= pool <= eligible, not "
                + ", ".join(str(count) for count in counts)
            )
        for name in ("retrieval_noise", "early_noise", "late_noise", "bid_spread", "bid_noise", "reserve_value"):
            _at_least(self, name, 0.0)


@dataclass(frozen=True)
class SimulationConfig:
    """One simulation: the same config gives the same logs, row for row."""

    seed: int = 0
    """Of all draws."""
    requests: int = 125_000
    """In all, in order of time; each has ``funnel.pool`` candidates."""
    valid_share: float = 0.1
    """Of the requests, before those of the test."""
    test_share: float = 0.1
    """Of the requests, the last ones."""
    unlabeled_share: float = 0.26
    """Of the candidates that were not shown, how many the unlabeled log keeps."""
    user_buckets: int = 32_768
    """Rows of the hashed user table."""
    crossed_features: bool = False
    """Add segment x category and the product of two signals to the log."""
    world: WorldConfig = field(default_factory=WorldConfig)
    """Users, ads and what makes them click."""
    funnel: FunnelConfig = field(default_factory=FunnelConfig)
    """Stages and auction."""
    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    def __post_init__(self) -> None:
        _at_least(self, "seed", 0)
        _at_least(self, "requests", 1)
        _at_least(self, "user_buckets", 1)
        for name in ("valid_share", "test_share", "unlabeled_share"):
            _share(self, name)
        if self.valid_share + self.test_share >= 1:
            raise ConfigError(
                f"valid_share + test_share must leave something to train on: {self.valid_share} + {self.test_share}"
            )
        if self.funnel.eligible > self.world.ads:
            raise ConfigError(f"funnel.eligible is {self.funnel.eligible}, but there are only {self.world.ads} ads")
        for split, (first, last) in self.split_requests.items():
            if last <= first and getattr(self, f"{split}_share", 1) > 0:
                raise ConfigError(f"{self.requests} requests are too few: none is left for split {split!r}")

    @property
    def split_requests(self) -> dict[str, tuple[int, int]]:
        """First and one past the last request of each split."""
        test = self.requests - round(self.requests * self.test_share)
        valid = test - round(self.requests * self.valid_share)
        return {"train": (0, valid), "valid": (valid, test), "test": (test, self.requests)}


def _at_least(config: object, name: str, least: float) -> None:
    if not getattr(config, name) >= least:  # also catches NaN
        raise ConfigError(f"{name} must be at least {least}, not {getattr(config, name)}")


def _share(config: object, name: str) -> None:
    if not 0 <= getattr(config, name) <= 1:
        raise ConfigError(f"{name} must lie between 0 and 1, not {getattr(config, name)}")
