"""The memory job: prediction and measurement agree, and less state lets a larger model fit."""

from pathlib import Path

from jobs.memory import LanguageModelMemory, MemoryOptions, RankerMemory, largest_shape, run
from rayrec.families.ranker.experiment import RankerExperiment
from rayrec.models.llama import SHAPES
from rayrec.optim import OptimizerConfig


def test_a_language_model_is_measured_as_predicted() -> None:
    results = run(LanguageModelMemory("tiny", 300, options=MemoryOptions(measure=True)))
    assert list(results) == ["adamw", "apollo", "apollo_mini", "galore", "muon"]
    for result in results.values():
        assert result["measured_state_bytes"] == result["state_bytes"]
    states = [result["state_bytes"] for result in results.values()]
    assert states[2] < states[1] < states[3] < states[4] < states[0]  # a weight: GaLore at most 3/4, Muon 1, AdamW 2


def test_a_ranker_is_measured_as_predicted(small_log: Path) -> None:
    results = run(RankerMemory(RankerExperiment(small_log), MemoryOptions(measure=True)))
    for result in results.values():
        assert result["measured_state_bytes"] == result["state_bytes"]
        assert result["times"] > 1_000  # a small ranker on a large card


def test_a_larger_shape_fits_a_card_with_less_optimizer_state() -> None:
    options = MemoryOptions(card_gib=12, reserve_gib=1, dtype="bfloat16")
    fitting = [
        largest_shape(OptimizerConfig(optimizer=name, embeddings="adamw"), 32_000, options)
        for name in ("adamw", "apollo_mini")
    ]
    assert fitting == ["1b", "3b"]
    assert largest_shape(OptimizerConfig(), 32_000, MemoryOptions(card_gib=0.01, reserve_gib=0)) is None
    assert list(SHAPES)[-1] == largest_shape(OptimizerConfig(), 32_000, MemoryOptions(card_gib=10_000))
