"""Balancing in a ranker's JSON: every method comes back as it was, old JSON keeps its meaning, and a new file is enough."""

from pathlib import Path
from typing import Any

import pytest
import torch

from rayrec.families.ranker.balancing_json import of_today
from rayrec.families.ranker.task import RankingConfig
from rayrec.methods import balancing
from rayrec.methods.balancing import METHODS, Balancer, Balancing
from rayrec.methods.balancing.cagrad import Cagrad
from rayrec.methods.balancing.famo import Famo
from rayrec.methods.balancing.fixed import Fixed
from rayrec.methods.balancing.gradnorm import Gradnorm
from rayrec.methods.balancing.mgda import Mgda
from rayrec.methods.balancing.multibalance import Multibalance
from rayrec.methods.balancing.nash_mtl import NashMtl
from rayrec.methods.balancing.pcgrad import Pcgrad
from rayrec.methods.balancing.running_min_norm import RunningMinNorm
from rayrec.methods.balancing.uncertainty import Uncertainty
from rayrec.methods.balancing.uniform import Uniform
from rayrec.typed_json import ConfigError, from_json, from_plain, to_json

OF_BEFORE: dict[str, Any] = {  # what to_json wrote for BalancingConfig()
    "method": "multibalance", "level": "representation", "normalize": None, "decay": None, "statistic": "gram",
    "solver": "projected_gradient", "solver_steps": 20, "ridge": 0.001, "rescale": True, "shares": [],
    "conflict_aversion": 0.5, "asymmetry": 1.5, "learning_rate": 0.025, "seed": 0,
}  # fmt: skip


def read(plain: object) -> Balancing | None:
    return from_plain(RankingConfig, {"balancing": plain}).balancing


@pytest.mark.parametrize("kind", METHODS, ids=lambda kind: kind.__name__)
def test_every_method_comes_back_from_json_as_it_was(kind: type[Balancing]) -> None:
    config = RankingConfig(balancing=Fixed(shares=(1.0, 2.0)) if kind is Fixed else kind())
    assert from_json(RankingConfig, to_json(config)) == config


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, RunningMinNorm()),
        ({"normalize": False, "decay": 0.5, "solver": "exact"}, RunningMinNorm(normalize=False, decay=0.5, solver="exact")),
        ({"method": "uniform"}, Uniform()),
        ({"method": "fixed", "shares": [1.0, 2.0]}, Fixed(shares=(1.0, 2.0), rescale=True)),
        ({"method": "mgda", "level": "parameters"}, Mgda(level="parameters", rescale=True)),
        ({"method": "pcgrad", "seed": 3, "rescale": False}, Pcgrad(seed=3)),
        ({"method": "cagrad", "normalize": True, "decay": 0.9}, Cagrad(normalize=True, decay=0.9, rescale=True)),
        ({"method": "nash_mtl"}, NashMtl(rescale=True)),
        ({"method": "gradnorm", "asymmetry": 0.5}, Gradnorm(asymmetry=0.5, relative=True)),
        ({"method": "uncertainty", "learning_rate": 0.1}, Uncertainty(learning_rate=0.1)),
    ],
)  # fmt: skip
def test_json_of_before_keeps_the_meaning_that_it_had(changes: dict[str, Any], expected: Balancing) -> None:
    assert read(OF_BEFORE | changes) == expected


def test_a_setting_of_the_former_multibalance_alone_names_our_own_form_and_the_name_alone_the_papers() -> None:
    assert read({"method": "multibalance", "decay": 0.9}) == RunningMinNorm(decay=0.9)
    assert read({"method": "multibalance"}) == Multibalance()
    assert read({"method": "multibalance", "level": "parameters"}) == Multibalance(level="parameters")
    assert of_today({"method": "pcgrad"}) == {"method": "pcgrad"}


@pytest.mark.parametrize(
    ("plain", "message"),
    [
        ({"method": "mulibalance"}, "mulibalance"),
        ({"method": "mgda", "conflict_aversion": 0.3}, r"balancing\.mgda\.conflict_aversion"),
        ({"method": "multibalance", "decay": 0.9, "norm_rate": 0.1}, r"running_min_norm\.norm_rate"),
        (OF_BEFORE | {"method": "mgda", "extra": 1}, r"mgda\.extra"),
        ("multibalance", "balancing"),
    ],
)
def test_a_wrong_method_or_setting_is_refused_by_name(plain: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read(plain)


@pytest.mark.parametrize("kind", [kind for kind in METHODS if kind is not Famo], ids=lambda kind: kind.__name__)
def test_a_checkpoint_of_before_still_loads(kind: type[Balancing]) -> None:
    """Then every balancer kept norms, gram and seen, and both that weigh losses kept first_losses."""
    config = Fixed(shares=(1.0, 2.0)) if kind is Fixed else kind()
    balancer = config.balancer(2, 8)
    state = {
        "weights": torch.tensor([0.3, 0.7]),
        "norms": torch.ones(2),
        "gram": torch.eye(2),
        "seen": torch.ones(2, 2),
    }
    state |= {"steps": torch.tensor(5)}
    if kind in (Gradnorm, Uncertainty):
        state |= {"loss_weights": torch.tensor([0.5, 1.5]), "first_losses": torch.ones(2)}
    balancer.load_state_dict(state)
    for name, value in balancer.state_dict().items():
        assert torch.equal(value, state[name]), name
    with pytest.raises(RuntimeError, match="unknown"):
        balancer.load_state_dict(state | {"unknown": torch.ones(1)})


NEW_FILE = '''
from dataclasses import dataclass
from typing import Literal
from rayrec.methods.balancing.balancer import Balancer, Balancing

@dataclass(frozen=True)
class Halved(Balancing):
    """Half of every loss."""
    method: Literal["halved"] = "halved"
    share: float = 0.5

    def balancer(self, tasks, width):
        return HalvedBalancer(self, tasks)

class HalvedBalancer(Balancer):
    def __init__(self, config, tasks):
        super().__init__(tasks)
        self.share = config.share

    def total(self, losses, h, inputs, parameters=()):
        return self.share * losses.sum()
'''


def test_a_new_balancer_is_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "halved_for_a_test.py").write_text(NEW_FILE)
    monkeypatch.setattr(balancing, "__path__", [*balancing.__path__, str(tmp_path)])
    (new,) = set(balancing.find_methods()) - set(METHODS)
    made = new(share=0.25)  # type: ignore[call-arg]
    total = made.balancer(2, 8).total(torch.tensor([1.0, 3.0]), torch.zeros(1), torch.zeros(1))
    assert isinstance(made.balancer(2, 8), Balancer)
    assert float(total) == 1.0
