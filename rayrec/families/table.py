"""The families of models, one record each. Only this file names them all; whatever is asked of a family is asked of its record.

Families that lie elsewhere are named by ``$RAYREC_FAMILIES``, paths "module:name" of their records with commas between them.
Importing it imports no family: a record holds import paths, and each is followed when it is first needed.
"""

import importlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import PlainSerializer, PlainValidator

from rayrec.training.experiment import Experiment
from rayrec.typed_json import ConfigError, from_json, to_plain

OTHERS = "RAYREC_FAMILIES"


@dataclass(frozen=True)
class Family:
    """What a family adds to the service; paths are "module:name".

    name: the ``kind`` of its experiments and bundles. word: its name on command lines. about: one line for ``--help``.
    experiment_path: its experiment class (``rayrec.training.experiment.Experiment``).
    bundle_path: function of a bundle's folder that loads and checks it.
    space: what is swept unless another is named, a module of ``tune_spaces`` or, with a dot in its name, another one.
    evaluation_path: dataclass of options with ``evaluate(bundle folder)``, what ``jobs.evaluate`` runs; None = none.
    service_path: module that serves it, as those of ``serve_apps`` do; None = not served.
    """

    name: str
    word: str
    about: str
    experiment_path: str
    bundle_path: str
    space: str
    evaluation_path: str | None = None
    service_path: str | None = None

    @property
    def experiment(self) -> type[Experiment]:
        found: type[Experiment] = follow(self.experiment_path)
        return found

    @property
    def load_bundle(self) -> Callable[[Path], Any]:
        found: Callable[[Path], Any] = follow(self.bundle_path)
        return found


FAMILIES: tuple[Family, ...] = (
    Family(
        "ranker",
        "ranker",
        "a multi-task ranker over the rows of a log",
        "rayrec.families.ranker.experiment:RankerExperiment",
        "rayrec.families.ranker.bundle:load_bundle",
        "ranker",
        "rayrec.families.ranker.evaluation:EvaluateRanker",
        "serve_apps.ranker.application",
    ),
    Family(
        "retriever",
        "retriever",
        "a sequential retriever over sequences of jobs.import_sequences",
        "rayrec.families.retriever.experiment:RetrieverExperiment",
        "rayrec.families.retriever.bundle:load_retriever",
        "sasrec",
        "rayrec.families.retriever.evaluation:EvaluateRetriever",
        "serve_apps.retriever.application",
    ),
    Family(
        "language_model",
        "lm",
        "a small decoder from scratch on a corpus of jobs.import_text",
        "rayrec.families.language_model.experiment:LanguageModelExperiment",
        "rayrec.families.language_model.bundle:load_language_model",
        "language_model",
        "rayrec.families.language_model.evaluation:EvaluateLanguageModel",
    ),
    Family(
        "content",
        "content",
        "a content ranker over the texts of a log of jobs.import_content",
        "rayrec.families.content.experiment:ContentExperiment",
        "rayrec.families.content.bundle:load_content_ranker",
        "spar",
        "rayrec.families.content.evaluation:EvaluateContent",
        "serve_apps.content.application",
    ),
)


def families() -> tuple[Family, ...]:
    """All of them. Raises ConfigError when ``$RAYREC_FAMILIES`` names what is not there or takes a name that is in use."""
    found = list(FAMILIES)
    for path in filter(None, map(str.strip, os.environ.get(OTHERS, "").split(","))):
        try:
            family = follow(path)
        except (ImportError, AttributeError, ValueError) as error:
            raise ConfigError(f"${OTHERS}: {path}: {error}") from None
        if not isinstance(family, Family):
            raise ConfigError(f"${OTHERS}: {path}: is no Family but {type(family).__name__}")
        taken = {name for one in found for name in (one.name, one.word)}
        if {family.name, family.word} & taken:
            raise ConfigError(f"${OTHERS}: {path}: there is a family {family.name!r} or a word {family.word!r} already")
        found.append(family)
    return tuple(found)


def family_of(kind: str) -> Family:
    """The family of that name. Raises ConfigError that lists those there are."""
    known = families()
    for family in known:
        if family.name == kind:
            return family
    raise ConfigError(
        f"no family of models is called {kind!r}; there are {', '.join(f.name for f in known)} (others: ${OTHERS})"
    )


def read_experiment(text: str | bytes, where: str) -> Experiment:
    """An experiment of any family from its JSON. Raises ConfigError that names ``where`` and every field that is wrong.

    Runs from before there were kinds are rankers.
    """
    try:
        plain = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{where}: no JSON: {error}") from None
    if not isinstance(plain, dict):
        raise ConfigError(f"{where}: an experiment is a JSON object, not {type(plain).__name__}")
    try:
        family = family_of(plain.get("kind", "ranker"))
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    return from_json(family.experiment, text, where)


def follow(path: str) -> Any:
    """What stands at "module:name"."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def _read(value: Any) -> Experiment:
    if isinstance(value, dict):
        return read_experiment(json.dumps(value), "experiment")
    experiment: Experiment = value
    return experiment


if TYPE_CHECKING:
    AnyExperiment = Experiment
else:
    # An experiment of any family as a field of a record in JSON.
    AnyExperiment = Annotated[Any, PlainValidator(_read), PlainSerializer(to_plain)]
