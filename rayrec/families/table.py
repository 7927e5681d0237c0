"""Every kind of experiment as one typed union: what run.json, sweep.json and MLflow's config.json may hold."""

from typing import Annotated, Any

from pydantic import Discriminator, Tag, TypeAdapter

from rayrec.families.language_model.experiment import LanguageModelExperiment
from rayrec.families.ranker.experiment import RankerExperiment
from rayrec.families.retriever.experiment import RetrieverExperiment
from rayrec.typed_json import parse


def _kind(value: Any) -> str | None:
    """Runs from before there were kinds are rankers."""
    return value.get("kind", "ranker") if isinstance(value, dict) else getattr(value, "kind", None)


AnyExperiment = Annotated[
    Annotated[RankerExperiment, Tag("ranker")]
    | Annotated[LanguageModelExperiment, Tag("language_model")]
    | Annotated[RetrieverExperiment, Tag("retriever")],
    Discriminator(_kind),
]

_ADAPTER: TypeAdapter[AnyExperiment] = TypeAdapter(AnyExperiment)


def read_experiment(text: str | bytes, where: str) -> AnyExperiment:
    """An experiment of any kind from its JSON. Raises ConfigError that names ``where`` and every field that is wrong."""
    return parse(_ADAPTER, text, where)
