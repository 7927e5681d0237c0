"""The leaderboard study on a small comparison: every model both ways, what is untrained, and sums beside them."""

import re
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest
import torch

from rayrec.data.sequences import write_sequences
from rayrec.families.retriever.bundle import load_retriever
from rayrec.families.retriever.evaluation import EvaluateRetriever
from rayrec.families.retriever.semantic_id_files import write_semantic_ids
from rayrec.retrieval.code_accuracy import right_codes
from rayrec.retrieval.residual_kmeans import ResidualKMeansConfig
from rayrec.retrieval.semantic_tokenizer import TokenizerConfig, fit_tokenizer
from rayrec.retrieval.trie import ItemTrie
from rayrec.runs.comparing import Judging, run_comparison
from rayrec.runs.comparison import Comparison, TrialKey, TrialOptions, trial_folder
from rayrec.runs.further import bundle_folder
from rayrec.training.judging import Judged
from rayrec.training.worker import Worker
from rayrec.typed_json import ConfigError
from studies.code_accuracy import CodeAccuracy
from studies.code_accuracy import run as code_accuracy
from studies.retrieval_leaderboard import PROTOCOLS, Entry, Leaderboard, _parts, choice_table, run, table
from tests.tasks.test_retrieval import ITEMS, experiment, sequence_data


def sequences_and_ids(folder: Path) -> tuple[Path, Path]:
    """Imported sequences and semantic IDs of random embeddings."""
    data = sequence_data()
    torch.manual_seed(0)
    made = fit_tokenizer(torch.randn(ITEMS, 8), TokenizerConfig(kmeans=ResidualKMeansConfig(2, 6, iterations=5)))
    ids = write_semantic_ids(folder / "ids", made, "random", data.items.fingerprint)
    return write_sequences(folder / "sequences", data), ids


def test_models_both_ways_stand_beside_what_is_untrained_and_sums(runs: Path, tmp_path: Path) -> None:
    folders = sequences_and_ids(tmp_path)
    arms = {name: experiment(folders, name, epochs=1).absolute() for name in ("sasrec", "dense")}  # type: ignore[arg-type]
    asked = EvaluateRetriever(beams=(10,), history=PROTOCOLS)
    with pytest.raises(ConfigError, match="no such file; make the comparison with"):
        run(Leaderboard("small"))
    comparison = Comparison(arms, "sasrec", (0, 1))
    state = run_comparison("small", comparison, TrialOptions(in_process=True), Judging(wanted=asked))
    with pytest.raises(ConfigError, match="no trial is done that was judged at beams 20 both ways"):
        run(Leaderboard("small", ("sasrec+text",)))
    with pytest.raises(ConfigError, match=r"sums: ARM\+ARM, ARM\*2 or ARM\+text or .*, not 'sasrec\+absent'"):
        run(Leaderboard("small", ("sasrec+absent",), 10))
    with pytest.raises(ConfigError, match=r"sums: the items of .* have no attributes"):
        run(Leaderboard("small", ("sasrec+attributes",), 10))
    with pytest.raises(ConfigError, match=r"sums: 'sasrec\+sasrec' names a part twice"):
        run(Leaderboard("small", ("sasrec+sasrec",), 10))
    with pytest.raises(ConfigError, match="no arm that emits codes is done"):
        code_accuracy(CodeAccuracy("small"))
    entries = run(
        Leaderboard("small", ("sasrec+dense", "sasrec+text", "sasrec*2", "sasrec*2+dense*2+cooccurrence"), 10)
    )
    assert list(entries) == [
        "popularity", "neighbours by text", "neighbours by cooccurrence", "sasrec", "dense",
        "sasrec + dense", "sasrec + text", "sasrec*2", "sasrec*2 + dense*2 + cooccurrence",
    ]  # fmt: skip
    two, four = entries["sasrec*2"], entries["sasrec*2 + dense*2 + cooccurrence"]
    assert list(two.judged["ranked"]) == list(four.judged["excluded"]) == [0]  # one pair of the seeds 0 and 1
    cost = {arm: sum(state.done[key].seconds for key in state.done if key.arm == arm) for arm in arms}
    assert two.seconds == [pytest.approx(cost["sasrec"])]
    assert four.seconds == [pytest.approx(sum(cost.values()))]
    assert [one.rsplit(" ", 1)[0] for one in four.chosen] == [
        f"seed 0+1 {protocol} {what}" for protocol in PROTOCOLS for what in ("share", "share", "valid ndcg@10")
    ]
    for key, ways in state.further.items():
        for protocol, way in zip(PROTOCOLS, ("", "excluded"), strict=True):
            assert entries[key.arm].judged[protocol][key.seed] == ways[way]
    for name in ("sasrec + dense", "sasrec + text"):
        assert all(list(entries[name].judged[protocol]) == [0, 1] for protocol in PROTOCOLS)
        for seed in (0, 1):  # validation may choose the model alone, so a sum is no worse than it there
            share = next(one for one in entries[name].chosen if one.startswith(f"seed {seed} ranked"))
            if share.endswith("share 0"):
                alone = entries["sasrec"].judged["ranked"][seed].metrics["all"]
                assert entries[name].judged["ranked"][seed].metrics["all"] == pytest.approx(alone)
    for protocol in PROTOCOLS:
        for name in ("sasrec + dense", "sasrec + text"):
            for seed in (0, 1):  # a share of 0 is the first model alone
                assert entries[name].valid[protocol][seed] >= entries["sasrec"].valid[protocol][seed] - 1e-6
    named = [*entries][3:]
    head, _, *rows, empty, ranked, excluded = choice_table(entries, "ndcg@10", "all")
    assert [row.split(" | ")[0] for row in rows] == [f"| {name}" for name in named]
    assert head.startswith("| validation, in-set | seeds | ndcg@10, history ranked |")
    assert empty == ""
    for protocol, line in zip(PROTOCOLS, (ranked, excluded), strict=True):
        best = max(named, key=lambda name: fmean(entries[name].valid[protocol].values()))
        test = [one.metrics["all"]["recall@10"] or 0.0 for one in entries[best].judged[protocol].values()]
        chosen = f"history {protocol}, validation chooses {best} ("
        assert line.startswith(chosen)
        assert f": test recall@10 {fmean(test):.4f} (" in line
    assert choice_table({"popularity": entries["popularity"]}, "ndcg@10", "all") == []
    lines = table(entries, "all", "sasrec")
    assert [line.split(" | ")[1] for line in lines if line.startswith("| sasrec*2 |")] == ["1 x 2", "1 x 2"]
    values = [entries["dense"].judged["excluded"][seed].metrics["all"]["recall@10"] or 0.0 for seed in (0, 1)]
    others = [entries["sasrec"].judged["excluded"][seed].metrics["all"]["recall@10"] or 0.0 for seed in (0, 1)]
    means, less = (line.split(" | ") for line in lines if line.startswith("| dense |"))
    assert means[4].startswith(f"{sum(values) / 2:.4f} (")
    assert less[4].startswith(f"{sum(values) / 2 - sum(others) / 2:+.4f} (")


def test_arms_that_read_other_than_the_first_are_not_summed_and_codes_are_judged_by_what_a_model_reads(
    runs: Path, tmp_path: Path
) -> None:
    folders = sequences_and_ids(tmp_path)
    sasrec, dense, tiger = (experiment(folders, name, epochs=1).absolute() for name in ("sasrec", "dense", "tiger"))
    short = replace(dense.retrieval, liger=replace(dense.retrieval.liger, max_length=3))
    users = replace(tiger.retrieval, tiger=replace(tiger.retrieval.tiger, user_tokens=40))
    arms = {
        "sasrec": sasrec,
        "short": replace(dense, retrieval=short),
        "few": replace(dense, stream=replace(dense.stream, valid_examples=50)),
        "tiger": tiger,
        "users": replace(tiger, retrieval=users),
    }
    asked = EvaluateRetriever(beams=(10,), history=PROTOCOLS)
    state = run_comparison(
        "unlike", Comparison(arms, "sasrec", (0,)), TrialOptions(in_process=True), Judging(wanted=asked)
    )
    for arm, why in (
        ("short", "short has max_length 3, the first arm 4"),
        ("few", "few has stream.valid_examples 50, the first arm"),
        ("tiger", "tiger has no dense head"),
        ("users", "users reads users or preferences"),
    ):
        with pytest.raises(ConfigError, match=why):
            run(Leaderboard("unlike", (f"sasrec+{arm}",), 10))
    (found,) = code_accuracy(CodeAccuracy("unlike"))["users"]
    head = load_retriever(bundle_folder(trial_folder(state.folder, TrialKey("users", 0)))).model.eval().generative
    assert head is not None
    parts = []
    for batch in arms["users"].data(Worker()).open_evaluation("test", 1).epoch_batches():
        with torch.no_grad():
            codes = right_codes(
                ItemTrie.of(head.item_tokens), head.decoding(batch.asked), head.item_tokens[batch.target]
            )
        parts.append(codes.first[head.seen[batch.target]])
    assert torch.equal(found.first, torch.cat(parts))


@pytest.mark.parametrize("arm", ["text", "one+two"])
def test_arms_that_a_sum_could_not_tell_apart_are_refused(arm: str) -> None:
    with pytest.raises(ConfigError, match=f"arms called {re.escape(arm)} cannot be told from what is summed"):
        _parts("sasrec*2", ("sasrec", arm))


def test_a_baseline_that_answers_in_several_ways_is_compared_way_by_way() -> None:
    def entry(recall: float) -> Entry:
        judged = {seed: Judged("test", {"all": {"recall@10": recall, "ndcg@10": recall / 2}}) for seed in (0, 1)}
        return Entry({protocol: dict(judged) for protocol in PROTOCOLS}, [1.0, 1.0])

    values = {"liger dense": 0.5, "liger hybrid 20": 0.4, "other dense": 0.8, "other hybrid 20": 0.6, "tiger 20": 0.1}
    lines = table({name: entry(value) for name, value in values.items()}, "all", "liger")
    with pytest.raises(ConfigError, match="the baseline sasrec has no trial"):
        table({"liger dense": entry(0.5)}, "all", "sasrec")
    below = lines[lines.index("") + 3 :]
    assert [line.split(" | ")[0] for line in below] == ["| other dense", "| other hybrid 20"]  # tiger: no like list
    assert [float(line.split(" | ")[2].split()[0]) for line in below] == pytest.approx([0.3, 0.2])
