"""The five axes against a brute-force construction on a toy catalogue."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from jobs.build_preference_benchmark import BuildBenchmark, build
from rayrec.data.importing.reading import SourceError
from rayrec.data.preferences.benchmark import Benchmark, read_benchmark, write_benchmark
from rayrec.data.preferences.pools import AXES, SPLITS, Floats, Pool, pair_up
from rayrec.data.preferences.sentiment import ReviewColumns, read_negative_reviews
from rayrec.data.preferences.table import (
    PreferenceColumns,
    PreferenceRecord,
    PreferenceRow,
    Preferences,
    obeying,
    read_preference_table,
    read_preferences,
    write_preferences,
)
from rayrec.data.sequences import Interactions, ItemTable, SequenceData, leave_one_out
from rayrec.text.preferences import Names, is_negative
from rayrec.typed_json import ConfigError

USERS, ITEMS, DIM = 40, 30, 6


def encode(texts: Sequence[str]) -> Floats:
    """Unit vectors fixed by the text."""
    rows = [np.random.default_rng(list(text.encode()) or [0]).normal(size=DIM) for text in texts]
    found = np.array(rows, np.float32).reshape(-1, DIM)
    return found / np.linalg.norm(found, axis=1, keepdims=True).clip(1e-9)


def toy_data() -> SequenceData:
    generator = np.random.default_rng(5)
    lengths = generator.integers(3, 9, USERS)
    histories = [generator.permutation(ITEMS)[:n] + 1 for n in lengths]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    items = ItemTable.of(
        [f"i{i}" for i in range(1, ITEMS + 1)],
        [f"text of {i}" for i in range(1, ITEMS + 1)],
        None,
        [f"title {i}" for i in range(1, ITEMS + 1)],
        [[f"category: kind {i % 17}", "brand: Acme"] for i in range(1, ITEMS + 1)],
    )
    users = pa.array([f"u{i}" for i in range(USERS)])
    return SequenceData(Interactions(offsets, np.concatenate(histories).astype(np.int32), ITEMS), items, users, "toy")


def toy_rows(data: SequenceData) -> list[PreferenceRow]:
    """At some positions of each user; some rows say only what is not wanted."""
    generator, rows = np.random.default_rng(6), []
    for user, length in enumerate(data.interactions.lengths):
        for position in range(length + 1):
            if generator.random() < 0.6:
                verb = "Avoid" if generator.random() < 0.2 else "Find"
                texts = [f"{verb} thing {generator.integers(40)}{c}" for c in "abc"]
                rows.append(PreferenceRow(f"u{user}", position, (*texts, f"Avoid x{user}", f"No y{user}")))
    return rows


@pytest.fixture(scope="module")
def data() -> SequenceData:
    return toy_data()


@pytest.fixture(scope="module")
def preferences(data: SequenceData, tmp_path_factory: pytest.TempPathFactory) -> Preferences:
    folder = tmp_path_factory.mktemp("preferences") / "p"
    return read_preferences(write_preferences(folder, toy_rows(data), PreferenceRecord("table", "toy", 0)), data)


@pytest.fixture(scope="module")
def benchmark(data: SequenceData, preferences: Preferences) -> Benchmark:
    return build(data, preferences, BuildBenchmark(Path("s"), Path("p"), Path("o")), encode, DIM)


def rows_of(pool: Pool) -> list[tuple[int, ...]]:
    columns = (pool.users, pool.positions, pool.targets, pool.preferences, pool.negatives)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def targets_of(data: SequenceData) -> dict[str, list[tuple[int, int]]]:
    """(user, position) by split: the last, the last but one, and of the rest all from the third on."""
    lengths = data.interactions.lengths.tolist()
    train = [(u, p) for u, n in enumerate(lengths) for p in range(2, n - 2)]
    return {
        "train": train,
        "valid": [(u, n - 2) for u, n in enumerate(lengths)],
        "test": [(u, n - 1) for u, n in enumerate(lengths)],
    }


def item_at(data: SequenceData, user: int, position: int) -> int:
    return int(data.interactions.items[data.interactions.offsets[user] + position])


def newest(data: SequenceData, user: int, position: int) -> PreferenceRow | None:
    own = [row for row in toy_rows(data) if row.user == f"u{user}" and row.position <= position]
    return max(own, key=lambda row: row.position, default=None)


def wishes(row: PreferenceRow) -> list[str]:
    """Positive ones, else inversions."""
    positive = [t for t in row.preferences if t.startswith("Find")]
    return positive or [t.replace("Avoid ", "Find ").replace("No ", "Search for ") for t in row.preferences]


def test_recommendation_and_consolidation_equal_brute_force(data: SequenceData, benchmark: Benchmark) -> None:
    titles = data.items.titles.to_pylist()
    for split, targets in targets_of(data).items():
        matched, joined, without = [], [], 0
        for user, position in targets:
            row, item = newest(data, user, position), item_at(data, user, position)
            if row is None:
                without += 1
                continue
            fits = [float(encode([wish])[0] @ encode([titles[item - 1]])[0]) for wish in wishes(row)]
            matched.append((user, position, item, wishes(row)[int(np.argmax(fits))]))
            joined.append((user, position, item, ". ".join(row.preferences)))
        for axis, wanted in (("recommendation", matched), ("consolidation", joined)):
            pool = benchmark.pools[axis, split]  # type: ignore[index]
            assert [(u, p, t, benchmark.texts[w]) for u, p, t, w, _ in rows_of(pool)] == wanted
        assert benchmark.card.without[split] == without
    assert sum(benchmark.card.without.values()) > 0


@pytest.mark.parametrize("axis", ["fine", "coarse"])
@pytest.mark.parametrize("split", SPLITS)
def test_steering_equals_brute_force(data: SequenceData, benchmark: Benchmark, axis: str, split: str) -> None:
    titles, targets = data.items.titles.to_pylist(), targets_of(data)[split]
    items = sorted({item_at(data, u, p) for u, p in targets})
    vectors = {i: encode([titles[i - 1]])[0] for i in items}
    last = {u: max(p for v, p in targets if v == u) for u in {u for u, _ in targets}}
    options: list[str] = []  # in the order in which texts were numbered
    for row in sorted(toy_rows(data), key=lambda r: (int(r.user[1:]), r.position)):
        if row.position <= last.get(int(row.user[1:]), -1):
            options += wishes(row)
    options = sorted(set(options), key=benchmark.texts.index)
    left, pairs = list(items), []
    while len(left) > 1:
        i = left.pop(0)
        closeness = [float(vectors[i] @ vectors[j]) for j in left]
        j = left[int(np.argmax(closeness) if axis == "fine" else np.argmin(closeness))]
        left.remove(j)
        pairs.append((i, j))
    pool = benchmark.pools[axis, split]  # type: ignore[index]
    found = rows_of(pool)
    assert [row[2] for row in found] == [target for i, j in pairs for target in (i, j)]
    for (user, position, target, wish, _), source in zip(found, [s for i, j in pairs for s in (j, i)], strict=True):
        assert (user, position) in targets
        assert item_at(data, user, position) == source  # a history that leads to the other one
        fits = np.array([float(encode([text])[0] @ vectors[target]) for text in options])
        order = np.argsort(-fits, kind="stable")
        assert benchmark.texts[wish] == options[order[0 if split == "train" else 1]]
    assert len({row[2] for row in found}) == len(found)


def test_pairs_are_the_closest_or_the_farthest_that_are_left() -> None:
    angles = np.array([0.0, 0.1, 1.0, 1.05, 3.0])
    vectors = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    assert pair_up(vectors, similar=True).tolist() == [[0, 1], [2, 3]]
    assert pair_up(vectors, similar=False).tolist() == [[0, 4], [1, 3]]
    assert pair_up(vectors[:1], similar=True).shape == (0, 2)


def test_no_preference_is_younger_than_its_target(
    data: SequenceData, benchmark: Benchmark, preferences: Preferences
) -> None:
    made: dict[tuple[int, str], int] = {}
    for user, position, texts in zip(preferences.users, preferences.positions, preferences.texts, strict=True):
        for text in (*wishes(PreferenceRow("", 0, texts)), ". ".join(texts)):
            made[int(user), text] = min(position, made.get((int(user), text), 99))
    for axis in ("recommendation", "consolidation"):
        for split in SPLITS:
            for user, position, _, wish, _ in rows_of(benchmark.pools[axis, split]):  # type: ignore[index]
                assert made[user, benchmark.texts[wish]] <= position
    for user, position, row in zip(*(np.repeat(np.arange(USERS), 9), np.tile(np.arange(9), USERS)),
                                   preferences.row_for(np.repeat(np.arange(USERS), 9), np.tile(np.arange(9), USERS)),
                                   strict=True):  # fmt: skip
        expected = newest(data, int(user), int(position))
        assert (row < 0) == (expected is None)
        if expected is not None:
            assert preferences.texts[row] == expected.preferences


def test_pools_of_an_axis_are_disjoint_and_the_same_each_time(
    data: SequenceData, preferences: Preferences, benchmark: Benchmark
) -> None:
    again = build(data, preferences, BuildBenchmark(Path("s"), Path("p"), Path("o")), encode, DIM)
    for axis in AXES:
        rows = {split: set(rows_of(benchmark.pools[axis, split])) for split in SPLITS}
        for split in SPLITS:
            assert rows_of(again.pools[axis, split]) == rows_of(benchmark.pools[axis, split])
            assert len(rows[split]) == len(benchmark.pools[axis, split]) > 0
        assert not rows["train"] & rows["valid"]
        assert not rows["train"] & rows["test"]
        assert not rows["valid"] & rows["test"]
    assert again.texts == benchmark.texts
    split = leave_one_out(data.interactions)
    for axis in ("recommendation", "fine", "coarse", "consolidation"):
        pool = benchmark.pools[axis, "train"]  # type: ignore[index]
        assert (pool.positions < split.train_lengths[pool.users]).all()


def test_the_stand_in_for_sentiment_pairs_opposites_of_a_phrase_and_names_no_brand(benchmark: Benchmark) -> None:
    positives = []
    for split in SPLITS:
        for _, position, target, wish, against in rows_of(benchmark.pools["sentiment", split]):
            phrase = f"kind {target % 17}"
            assert position == 0
            assert (benchmark.texts[wish], benchmark.texts[against]) == (f"Find {phrase}", f"Avoid {phrase}")
            positives.append(wish)
    assert len(set(positives)) == len(positives) == 17
    assert benchmark.card.sentiment == "stand-in"


def test_sentiment_from_reviews_takes_the_complaint_nearest_to_the_review(
    data: SequenceData, preferences: Preferences, tmp_path: Path
) -> None:
    lengths = data.interactions.lengths
    events = [(u, p, item_at(data, u, p)) for u in range(USERS) for p in range(int(lengths[u]))]
    stars = [1 + (u * 3 + p) % 5 for u, p, _ in events]
    texts = [f"review {u} {p}" for u, p, _ in events]
    file = tmp_path / "reviews.csv"
    lines = [f"u{u},i{i},{s},{t}" for (u, _, i), s, t in zip(events, stars, texts, strict=True)]
    file.write_text("\n".join(["user,item,rating,review", *lines, "u0,i0,1,of no item", "nobody,i1,1,of nobody"]))
    command = BuildBenchmark(Path("s"), Path("p"), Path("o"), file, ReviewColumns(review="review"))
    found = build(data, preferences, command, encode, DIM)
    rows, seen, expected = toy_rows(data), set(), {split: [] for split in SPLITS}  # type: ignore[var-annotated]
    titles = data.items.titles.to_pylist()
    for (u, p, item), s, t in zip(events, stars, texts, strict=True):
        row = next((r for r in rows if r.user == f"u{u}" and r.position == p + 1), None)
        if s > 2 or row is None:
            continue
        against = [w for w in row.preferences if is_negative(w)]
        question = encode([f"Review: {t}, Title: {titles[item - 1]}"])[0]
        chosen = against[int(np.argmax([float(encode([w])[0] @ question) for w in against]))]
        positive = chosen.replace("Avoid ", "Find ").replace("No ", "Search for ")
        split = "test" if p == lengths[u] - 1 else "valid" if p == lengths[u] - 2 else "train"
        if positive not in seen:
            seen.add(positive)
            expected[split].append((item, positive, chosen))
    for split in SPLITS:
        pool = found.pools["sentiment", split]
        assert len(pool)
        assert [(t, found.texts[w], found.texts[n]) for _, _, t, w, n in rows_of(pool)] == expected[split]
    assert found.card.sentiment == "reviews"
    with pytest.raises(SourceError, match="column 'stars' is missing"):
        build(
            data,
            preferences,
            BuildBenchmark(Path("s"), Path("p"), Path("o"), file, ReviewColumns(rating="stars")),
            encode,
            DIM,
        )


def named_data() -> SequenceData:
    """Two users, three items, whose names are numbers as nobody writes numbers."""
    items = ItemTable.of(["007", "7", "0205616461"], None, None, ["A", "B", "C"])
    offsets, numbers = np.array([0, 2, 4], np.int64), np.array([1, 3, 2, 1], np.int32)
    return SequenceData(Interactions(offsets, numbers, 3), items, pa.array(["0042", "42"]), "named")


def test_reviews_are_of_the_users_and_items_that_they_name(tmp_path: Path) -> None:
    data, file = named_data(), tmp_path / "reviews.csv"
    long = "a line\n" * 200_000  # more than Arrow looks at to find out where a line ends
    rows = ["0042,007,1,bad", f'0042,0205616461,2.0,"{long}"', "42,7,,none", " 42 ,7,1,poor", "42,0205616461,1,not his"]
    file.write_text("\n".join(["user,item,rating,review", *rows, ",7,1,nobody's"]) + "\n")
    found = read_negative_reviews(file, ReviewColumns(review="review"), data)
    assert found.users.tolist() == [0, 0, 1]
    assert found.positions.tolist() == [0, 1, 0]
    assert found.reviews == ("bad", long, "poor")
    assert found.outside == 2
    table = pa.table({"user": ["0042", "42"], "item": ["007", "7"], "verdict": ["Negative", "-1"]})
    pq.write_table(table, tmp_path / "verdicts.parquet")
    for name in ("verdicts.parquet", "verdicts.csv"):
        (tmp_path / "verdicts.csv").write_text("user,item,verdict\n0042,007,Negative\n42,7,-1\n42,007,1\n42,007,\n")
        found = read_negative_reviews(tmp_path / name, ReviewColumns(sentiment="verdict"), data)
        assert found.users.tolist() == [0, 1]
        assert found.outside == 0


def test_ratings_that_are_no_numbers_and_reviews_of_others_are_told(
    data: SequenceData, preferences: Preferences, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "reviews.csv"
    file.write_text("user,item,rating\nu0,i1,\nu0,i1,5 stars\n")
    command = BuildBenchmark(Path("s"), Path("p"), Path("o"), file)
    with pytest.raises(SourceError, match=r"reviews\.csv: column 'rating', row 2 holds '5 stars', expected a number"):
        build(data, preferences, command, encode, DIM)
    file.write_text("user,item,rating\nu0,i1,NA\nu0,i2,many\n")  # the first is but without one
    with pytest.raises(SourceError, match="row 2 holds 'many', expected a number"):
        build(data, preferences, command, encode, DIM)
    file.write_text("user,item,rating\nu0,i1,1,extra\n")
    with pytest.raises(
        SourceError, match=r"reviews\.csv: row 1: wrong number of fields: 4 instead of 3; expected UTF-8"
    ):
        build(data, preferences, command, encode, DIM)
    file.write_text("user,item,rating\nstranger,i1,1\n")
    with pytest.raises(ConfigError, match="none of 1 negative reviews is of an item in its user's history"):
        build(data, preferences, command, encode, DIM)
    own = item_at(data, 0, 0)
    file.write_text(f"user,item,rating\nstranger,i1,1\nu0,i{own},1\n")
    build(data, preferences, command, encode, DIM)
    assert "1 negative reviews; 1 more are of no item in their user's history" in capsys.readouterr().out


def test_a_benchmark_comes_back_from_disk_and_of_other_sequences_is_refused(
    data: SequenceData, benchmark: Benchmark, tmp_path: Path
) -> None:
    folder = write_benchmark(tmp_path / "b", benchmark, data.items.names.to_pylist())
    found = read_benchmark(folder, data.interactions)
    assert found.card == benchmark.card
    assert found.texts == benchmark.texts
    np.testing.assert_array_equal(found.vectors, benchmark.vectors)
    for key, pool in benchmark.pools.items():
        assert rows_of(found.pools[key]) == rows_of(pool)
    card = (folder / "card.md").read_text()
    assert "a table of the user (toy)" in card
    assert "sentiment (axis 2): stand-in, extractive" in card
    counts = {(c.axis, c.split): c for c in benchmark.card.counts}
    known = set(benchmark.pools["recommendation", "train"].preferences.tolist())
    test = benchmark.pools["recommendation", "test"].preferences.tolist()
    assert counts["recommendation", "test"].unseen == sum(wish not in known for wish in test)
    with pytest.raises(ConfigError, match="40 users and 30 items; the sequences have 40 users and 31"):
        read_benchmark(folder, replace(data.interactions, num_items=ITEMS + 1))
    with pytest.raises(ConfigError, match="no such file"):
        read_benchmark(tmp_path / "absent", data.interactions)
    turned = np.concatenate([[0], np.cumsum(data.interactions.lengths[::-1])]).astype(np.int64)
    for other in (
        replace(data.interactions, items=np.ascontiguousarray(data.interactions.items[::-1])),
        replace(data.interactions, offsets=turned),
    ):
        told = r"a benchmark of other sequences: axis recommendation, the history of user row \d+ has no item \d+ at"
        with pytest.raises(ConfigError, match=told):
            read_benchmark(folder, other)
    pools = pq.read_table(folder / "pools.parquet")
    far = pc.if_else(pc.equal(pools.column("axis"), "coarse"), 10, pools.column("position")).cast(pa.int32())
    index = pools.schema.get_field_index("position")
    pq.write_table(pools.set_column(index, "position", far), folder / "pools.parquet")
    with pytest.raises(ConfigError, match=r"axis coarse, the history of user row \d+ has no position 10"):
        read_benchmark(folder, data.interactions)


def test_a_table_of_preferences_is_read_filtered_and_refused_by_row(data: SequenceData, tmp_path: Path) -> None:
    good = ["Find a b", "Find b c", "Find c d", "Find d e", "Find e f"]
    table = pa.table(
        {"user": ["u0", "u1", "u2"], "at": [1, 2, 2], "preferences": [good, good[:3], [*good[:4], "glue"]]}
    )
    pq.write_table(table, tmp_path / "own.parquet")
    rows = read_preference_table(tmp_path / "own.parquet", PreferenceColumns(position="at"))
    kept, refused = obeying(rows, Names(), None)
    assert kept == [PreferenceRow("u0", 1, tuple(good))]
    assert refused == {"too few": 1, "a single word": 1}
    (tmp_path / "own.csv").write_text('user,preferences\nu3,"' + "\n".join(good) + '"\n')
    assert read_preference_table(tmp_path / "own.csv", PreferenceColumns()) == [PreferenceRow("u3", 0, tuple(good))]
    for changed, problem in (
        (PreferenceRow("stranger", 1, tuple(good)), "row 1: user 'stranger' is not in the sequences"),
        (PreferenceRow("u0", 99, tuple(good)), "row 1: position 99 of a history of"),
    ):
        folder = write_preferences(tmp_path / "wrong", [changed], PreferenceRecord("table", "t", 0))
        with pytest.raises(ConfigError, match=problem):
            read_preferences(folder, data)
    with pytest.raises(SourceError, match="column 'at' is missing"):
        read_preference_table(tmp_path / "own.csv", PreferenceColumns(position="at"))


def test_users_of_a_table_of_preferences_stay_as_they_are_written(tmp_path: Path) -> None:
    lines = "\n".join(f"Find a, {letter}" for letter in "abcdef")  # each with as many commas as a row has
    file = tmp_path / "own.csv"
    file.write_text(f'user,preferences,at\n0042,"{lines}",1\n" 42 ",Find b c,0\n7,,0\n')
    columns = PreferenceColumns(position="at")
    with pytest.raises(SourceError, match=r"own\.csv: column 'preferences', row 3 holds nothing, expected a value"):
        read_preference_table(file, columns)
    file.write_text(f'user,preferences\n0042,"{lines}"\n" 42 ",Find b c\n')
    expected = [PreferenceRow("0042", 0, tuple(lines.split("\n"))), PreferenceRow("42", 0, ("Find b c",))]
    assert read_preference_table(file, PreferenceColumns()) == expected
    for rows, problem in (
        ("u,1.5,Find a b", "column 'at', row 1 holds '1.5', expected a whole number from 0 on"),
        ("u,1,Find a b\nu,-1,Find a b", "column 'at', row 2 holds '-1', expected a whole number from 0 on"),
        ("u,many,Find a b", "column 'at', row 1 holds 'many', expected a number"),
        (" ,1,Find a b", "column 'user', row 1 holds nothing, expected a name"),
    ):
        file.write_text(f"user,at,preferences\n{rows}\n")
        with pytest.raises(SourceError, match=problem):
            read_preference_table(file, columns)
    pq.write_table(pa.table({"user": [42, 7], "preferences": [["Find a b"], []]}), tmp_path / "own.parquet")
    found = read_preference_table(tmp_path / "own.parquet", PreferenceColumns())
    assert found == [PreferenceRow("42", 0, ("Find a b",)), PreferenceRow("7", 0, ())]
