"""Two bundles of the same schema with different weights, the ranking app without Ray, and the parts of a cascade."""

from pathlib import Path

import pytest
import torch

from rayrec.bundle import write_bundle
from rayrec.data.log import Log
from rayrec.families.ranker.bundle import ranker_parts
from rayrec.families.ranker.task import RankingConfig, RankingTask
from serve_apps.ranker.request import RankRequest
from serve_apps.ranker.served import Ranked, ServedRanker, load_ranker
from serve_apps.service.model_reference import ModelReference
from serve_apps.service.refusals import RequestError
from tests.serve_apps.cascade_parts import Parts, PlainStages, small_parts


class InProcess:
    """A RankingService that answers each request by itself."""

    def __init__(self, ranker: ServedRanker) -> None:
        self.current = ranker

    async def ask(self, ranker: ServedRanker, request: RankRequest) -> Ranked:
        (answer,) = ranker.rank([request])
        if isinstance(answer, RequestError):
            raise answer
        return answer


@pytest.fixture(scope="session")
def bundles(small_log: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders ``first`` and ``second``."""
    schema = Log.open(small_log).schema
    task = RankingTask(schema, RankingConfig())
    folder = tmp_path_factory.mktemp("bundles")
    paths = []
    for seed, name in enumerate(("first", "second")):
        torch.manual_seed(seed)
        model = task.build().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))  # the wide part starts at zero
        paths.append(
            write_bundle(
                folder / name,
                ranker_parts(model, task.model_config, schema),
                metrics={"test": {"click": {"auc": 0.7}}},
                run_config={"log": str(small_log)},
            )
        )
    return paths[0], paths[1]


@pytest.fixture(scope="session")
def ranker(bundles: tuple[Path, Path]) -> ServedRanker:
    return load_ranker(ModelReference(str(bundles[0]), "small", "1"), max_candidates=50)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory, small_log: Path) -> Parts:
    return small_parts(tmp_path_factory.mktemp("cascade"), small_log)


@pytest.fixture(scope="module")
def stages(parts: Parts, tmp_path_factory: pytest.TempPathFactory) -> PlainStages:
    return PlainStages(parts.references(), tmp_path_factory.mktemp("state"))
