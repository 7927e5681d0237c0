"""Content logs: written and read back, checked, and imported from the public files and from MIND's exact format."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from rayrec.data.content import (
    ContentError,
    ContentLog,
    ItemTexts,
    Lists,
    TextField,
    UserTexts,
    add_user_texts,
    read_content,
    write_content,
)
from rayrec.data.content.drawing import CandidateDraw, Drawer, gather
from rayrec.data.content.streams import ContentStreamConfig
from rayrec.data.content.tokens import read_tokens, tokenize, write_tokens
from rayrec.data.public.content_bing import BingNews
from rayrec.data.public.content_goodreads import GoodreadsOnce
from rayrec.data.public.content_mind import Mind
from rayrec.data.public.content_movielens import MovielensTastes
from rayrec.families.content.untrained import bm25, judge_scores, popularity
from rayrec.text.content_tokenizer import ContentTokenizer, load_tokenizer
from rayrec.text.tokenizer import train_tokenizer

NEWS = (
    "N1\tsports\tsoccer\tA goal\tLate goal wins.\thttps://x\t[]\t[]\n"
    "N2\tfood\trecipes\tA \"pie\"\t\thttps://x\t[]\t[]\n"
    "N3\tnews\tpolitics\tA vote\tA vote is held.\thttps://x\t[]\t[]\n"
)  # fmt: skip


def write_mind(folder: Path) -> Path:
    for name, behaviors in {
        "MINDsmall_train": "1\tU1\t11/11/2019 9:05:58 AM\tN1 N2 N9\tN3-1 N2-0 N8-0\n2\tU2\t11/12/2019 6:11:30 PM\t\tN1-0 N3-1\n",
        "MINDsmall_dev": "1\tU1\t11/15/2019 8:55:22 AM\tN1 N2 N3\tN1-0 N2-1\n2\tU3\t11/15/2019 8:55:22 AM\tN3\tN8-1\n",
    }.items():
        (folder / name).mkdir()
        (folder / name / "news.tsv").write_text(NEWS)
        (folder / name / "behaviors.tsv").write_text(behaviors)
    return folder


def small() -> ContentLog:
    items = ItemTexts.of(["a", "b"], (TextField("title", "Title", 4),), {"title": ["one two three four five", ""]})
    shown = gather([("train", 0, [1, 2], [1, 0]), ("test", 1, [2, 1], [1, 0])])
    texts = {"v1": UserTexts("a test", pa.array(["likes one", ""]), "of nothing")}
    return ContentLog(
        items, pa.array(["u", "v"]), np.array([0, 1]), np.array([0, 1]), Lists.of([[2], []]), shown, texts
    )


def test_a_log_comes_back_from_disk_with_texts_that_were_added_later(tmp_path: Path) -> None:
    folder = write_content(tmp_path / "log", small())
    add_user_texts(folder, "v2", UserTexts("another", pa.array(["x", "y"])))
    log = read_content(folder)
    assert log.items.fingerprint == small().items.fingerprint
    assert [log.histories[row].tolist() for row in range(2)] == [[2], []]
    assert log.impressions.candidates[1].tolist() == [2, 1]
    assert log.impressions.labels[1].tolist() == [1, 0]
    assert (log.user_texts["v1"].generator, log.user_texts["v2"].texts.to_pylist()) == ("a test", ["x", "y"])
    with pytest.raises(ContentError, match="v2: exists already"):
        add_user_texts(folder, "v2", UserTexts("another", pa.array(["x", "y"])))
    with pytest.raises(ContentError, match=r"version '\.\./v': expected letters"):
        add_user_texts(folder, "../v", UserTexts("another", pa.array(["x", "y"])))


def test_what_contradicts_itself_is_named() -> None:
    log = small()
    with pytest.raises(ContentError, match=r"histories.parquet: items must lie in 1..2, found 3 \(entry 0\)"):
        replace(log, histories=Lists.of([[3], []]))
    with pytest.raises(ContentError, match="row 1 has 1 candidates and 2 labels"):
        replace(log, impressions=replace(log.impressions, candidates=Lists.of([[1, 2], [2]])))
    with pytest.raises(ContentError, match="split must be one of train, valid, test, found 'dev'"):
        replace(log, impressions=replace(log.impressions, split=np.array(["dev", "test"])))


def test_tokens_are_cut_by_field_and_belong_to_their_log(tmp_path: Path) -> None:
    trained = train_tokenizer(["one two three four five Title:; likes"] * 3, 300)
    tokenizer = ContentTokenizer(trained.json, trained.separator, trained.separator, trained.vocabulary)
    log = small()
    folder = write_tokens(tmp_path / "tokens", tokenize(log, tokenizer, "small", 3))
    tokens = read_tokens(folder, log)
    label = tokenizer.pieces(["Title:"])[0]
    text = tokenizer.pieces(["one two three four five"])[0][:4]
    assert tokens.items[0].tolist() == [tokenizer.start, *label, *text, tokenizer.end]
    assert tokens.items[1].tolist() == [tokenizer.start, tokenizer.end]
    assert len(tokens.user_texts["v1"][0]) <= 5
    assert len(tokens.user_texts["v1"][1]) == 0
    other = replace(log, items=ItemTexts.of(["a", "b"], log.items.fields, {"title": ["one", ""]}))
    with pytest.raises(ContentError, match="tokens of other items"):
        read_tokens(folder, other)


@pytest.mark.parametrize("missing", ["drop", "keep"])
def test_mind_is_read_in_its_exact_format(tmp_path: Path, missing: str) -> None:
    log = Mind(missing=missing).read(write_mind(tmp_path))  # type: ignore[arg-type]
    assert log.items.texts["title"].to_pylist()[:3] == ["A goal", 'A "pie"', "A vote"]
    assert log.items.texts["category"].to_pylist()[:3] == ["sports", "food", "news"]
    assert (log.notes["missing_candidates"], log.notes["missing_clicks"]) == (2, 1)
    shown = log.impressions
    first = shown.candidates[0].tolist(), shown.labels[0].tolist(), log.histories[shown.history[0]].tolist()
    if missing == "drop":
        assert first == ([3, 2], [1, 0], [2, 1])  # newest first
        assert log.notes["impressions_left_empty"] == 1
    else:
        assert first == ([3, 2, 5], [1, 0, 0], [4, 2, 1])
        assert len(log.items) == 5
    assert log.histories[log.current[0]].tolist() == [3, 2, 1]
    assert len(log.histories[shown.history[1]]) == 0
    assert shown.split[0] == "train"
    assert shown.split[2] in ("valid", "test")


def test_a_broken_mind_line_is_named_and_so_is_the_download(tmp_path: Path) -> None:
    file = write_mind(tmp_path) / "MINDsmall_train" / "behaviors.tsv"
    file.write_text("1\tU1\tt\tN1\tN3-2\n")
    with pytest.raises(
        ContentError, match=r"behaviors.tsv, line 1: impression 'N3-2'; expected a news id, then -0 or -1"
    ):
        Mind().read(tmp_path)
    file.write_text("1\tU1\tt\tN1\n")
    with pytest.raises(ContentError, match=r"behaviors.tsv, line 1: 4 fields, expected 5"):
        Mind().read(tmp_path)
    with pytest.raises(ContentError, match=r"MINDsmall_train\.zip"):
        Mind().read(tmp_path / "nowhere")


def test_movielens_histories_never_hold_what_is_to_be_predicted(data_root: Path) -> None:
    source = data_root / "movielens_tastes"
    if not source.is_dir():
        pytest.skip("no movielens_tastes")
    log = MovielensTastes(users=30, folds=3).read(source)
    shown = log.impressions
    for row in range(len(shown)):
        candidates, labels = shown.candidates[row], shown.labels[row]
        assert len(set(candidates.tolist())) == len(candidates)
        assert not set(candidates.tolist()) & set(log.histories[shown.history[row]].tolist())
        assert (labels == 0).sum() == 4 * (labels == 1).sum()
    assert log.user_texts["tastes"].texts[0].as_py().startswith("I have a diverse taste in movies.")
    again = MovielensTastes(users=30, folds=3).read(source)
    assert np.array_equal(again.impressions.candidates.values, shown.candidates.values)
    other = MovielensTastes(users=30, folds=3, draw=CandidateDraw(seed=1)).read(source)
    assert not np.array_equal(other.impressions.candidates.values, shown.candidates.values)


def test_candidates_of_a_kind_are_drawn_by_popularity_too() -> None:
    counts = np.array([0, 10, 90, 300, 0])
    kind = np.array([1, 2], dtype=np.int32)
    drawer = Drawer(CandidateDraw(positives=1, negatives=1, by_kind=1.0), counts, [kind] * 5)
    drawn = [drawer.impressions("train", 0, [4], set())[0][2] for _ in range(2000)]
    negatives = np.array([next(item for item in pair if item != 4) for pair in drawn])
    assert set(negatives.tolist()) == {1, 2}
    assert abs((negatives == 2).mean() - 0.9) < 0.03
    nobody = Drawer(CandidateDraw(positives=1, negatives=1, by_kind=1.0), counts, [np.array([4], dtype=np.int32)] * 5)
    assert nobody.impressions("train", 0, [4], set())[0][2] != [4, 4]  # a kind that nobody likes: as without kinds


def test_goodreads_and_bing_news_are_read(data_root: Path) -> None:
    if not (data_root / "goodreads_once").is_dir() or not (data_root / "bing_news_dkn").is_dir():
        pytest.skip("no goodreads_once or bing_news_dkn")
    books = GoodreadsOnce(users=500).read(data_root / "goodreads_once")
    assert (len(books.items), len(books.users)) == (16_833, 500)
    assert set(books.impressions.split.tolist()) == {"train", "valid", "test"}
    news = BingNews().read(data_root / "bing_news_dkn")
    assert int(news.impressions.candidates.lengths.sum()) + news.notes["repeated_lines"] == 10_401 + 462
    for log in (books, news):
        shown = log.impressions
        train = shown.rows("train")[:200]
        assert not any(set(shown.candidates[r].tolist()) & set(log.histories[shown.history[r]].tolist()) for r in train)


def test_bing_news_has_both_labels_where_it_is_judged_and_folds_test_each_user_once(data_root: Path) -> None:
    source = data_root / "bing_news_dkn"
    if not source.is_dir():
        pytest.skip("no bing_news_dkn")

    def both(log: ContentLog, split: str) -> int:
        shown = log.impressions
        return sum(len(set(shown.labels[row].tolist())) == 2 for row in shown.rows(split))

    released = BingNews().read(source)
    assert (both(released, "valid") > 60, both(released, "test")) == (True, 59)
    tested: list[int] = []
    for fold in range(5):
        log = BingNews(folds=5, fold=fold).read(source)
        shown, owners = log.impressions, log.owners[log.impressions.history]
        users = {split: set(owners[shown.rows(split)].tolist()) for split in ("train", "valid", "test")}
        assert not users["train"] & users["test"] | users["valid"] & users["test"] | users["train"] & users["valid"]
        assert both(log, "test") > 100
        assert int(shown.candidates.lengths.sum()) + log.notes["repeated_lines"] == 10_401 + 462
        for row in shown.rows("test"):
            assert not set(shown.candidates[row].tolist()) & set(log.histories[shown.history[row]].tolist())
        tested += users["test"]
    assert sorted(tested) == list(range(len(released.users)))
    with pytest.raises(ValueError, match="fold one of them, not 5 and 5"):
        BingNews(folds=5, fold=5)


def test_t5s_vocabulary_starts_and_ends_texts_and_comes_back_as_text(data_root: Path) -> None:
    file = data_root / "t5_vocabulary" / "spiece.model"
    if not file.is_file():
        pytest.skip("no t5_vocabulary")
    tokenizer = load_tokenizer(str(file))
    assert (tokenizer.vocabulary, tokenizer.start, tokenizer.end) == (32_100, 32_099, 1)
    assert tokenizer.pieces(["studies have shown that owning a dog is good for you"]) == [
        [2116, 43, 2008, 24, 293, 53, 3, 9, 1782, 19, 207, 21, 25]
    ]  # the pieces of the highest score: owning is "own" and "ing", a is "" and "a"
    (ids,) = tokenizer.texts(["A late goal wins."], 20)
    assert tokenizer.decode(ids) == "A late goal wins."


def test_popularity_and_bm25_rank_what_they_should() -> None:
    items = ItemTexts.of(
        list("abcd"), (TextField("title", "Title", 8),), {"title": ["red wine", "red grapes", "old cars", "new cars"]}
    )
    shown = gather([("train", 0, [3, 2], [1, 0]), ("test", 0, [2, 4], [1, 0])])
    log = ContentLog(items, pa.array(["u"]), np.array([0]), np.array([0]), Lists.of([[1]]), shown)
    assert bm25(log, 60)(0, np.array([2, 4]))[0] > bm25(log, 60)(0, np.array([2, 4]))[1]
    assert popularity(log)(0, np.array([3, 4])).tolist() == [1, 0]
    assert judge_scores(log, bm25(log, 60), "test").metrics["impressions"]["auc"] == 1.0


def test_a_sample_of_no_history_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="valid_histories must be at least 1"):
        ContentStreamConfig(valid_histories=0)
