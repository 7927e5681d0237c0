"""The sweep of Mender: learning rate, weight decay, dropout, beams, and with LoRA its rank.

The base names the variant (``--retrieval.model mender_emb``, ``mender_tok`` or ``extended_lm``) and ``--preferences.benchmark``.
"""

from ray import tune
from ray.tune.search.sample import Domain

from rayrec.families.retriever.experiment import RetrieverExperiment
from rayrec.runs.sweeping import SweepSpace
from rayrec.typed_json import ConfigError


def parameters(base: RetrieverExperiment) -> dict[str, Domain]:
    """Of the base's variant. Raises ConfigError for a model that is blind to preferences."""
    model = base.retrieval.model
    if base.retrieval.architecture.reads_preferences is None:
        raise ConfigError(
            f"model {model!r} reads no preferences: the base needs --retrieval.model mender_emb, mender_tok or extended_lm"
        )
    found: dict[str, Domain] = {
        "optimizer.learning_rate": tune.loguniform(1e-4, 3e-3),
        "optimizer.weight_decay": tune.loguniform(1e-3, 0.3),
        f"retrieval.{model}.transformer.dropout": tune.uniform(0.0, 0.4),
        f"retrieval.{model}.input_dropout": tune.uniform(0.0, 0.5),
        f"retrieval.{model}.preference_dropout": tune.uniform(0.0, 0.3),
        "retrieval.beams": tune.choice([10, 20, 30]),
    }
    reader = base.retrieval.reader
    if reader is not None and reader.tune == "lora":
        found[f"retrieval.{model}.lora_rank"] = tune.choice([4, 8, 16, 32])
    return found


SPACE = SweepSpace(("retriever",), parameters)
