"""movielens_tastes as it is: tastes know the training likes alone, which come first in the history."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from rayrec.data.public.amazon2018 import read_amazon2018_processed
from rayrec.data.public.movielens_tastes import read_movielens_tastes, read_tastes
from rayrec.data.sequences import read_sequences, write_sequences
from rayrec.data.sequences.interactions import InteractionsError


@pytest.fixture(scope="module")
def source(data_root: Path) -> Path:
    folder = data_root / "movielens_tastes"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    return folder


def test_a_taste_is_older_than_every_like_that_it_did_not_know(source: Path, tmp_path: Path) -> None:
    data = read_movielens_tastes(source)
    raw = pq.read_table(source / "users.parquet").to_pylist()
    names = data.items.names.to_pylist()
    assert (data.interactions.num_users, data.interactions.num_items) == (1_000, 3_292)
    for row, (user, taste) in enumerate(zip(raw, read_tastes(source), strict=True)):
        history = data.interactions.items[data.interactions.offsets[row] : data.interactions.offsets[row + 1]]
        liked = [int(names[item - 1]) for item in history]
        known = len(user["train"])
        assert taste.position == known
        assert taste.preferences == tuple(user["tastes"])
        assert sorted(liked[:known]) == sorted(user["train"])
        assert sorted(liked[known : known + len(user["valid"])]) == sorted(user["valid"])
        assert sorted(liked[known + len(user["valid"]) :]) == sorted(user["test"])
    last = data.interactions.items[data.interactions.offsets[1:] - 1]
    assert len(set(last.tolist())) > 600  # in the files' order these are 265
    assert read_movielens_tastes(source).interactions.items.tolist() == data.interactions.items.tolist()
    first = data.items.titles[0].as_py(), data.items.labels[0].as_py(), data.items.texts[0].as_py()
    assert first[0] == "Toy Story (1995)"
    assert first[1] == ["genre: Animation", "genre: Children's", "genre: Comedy"]
    assert first[2].startswith(
        "Title: Toy Story (1995). Genres: Animation, Children's, Comedy. Summary: A group of toys"
    )
    found = read_sequences(write_sequences(tmp_path / "s", data)).items
    assert found.titles.equals(data.items.titles)
    assert found.labels.equals(data.items.labels)


def test_items_of_amazon_carry_title_brand_and_categories(data_root: Path) -> None:
    folder = data_root / "amazon2018_scientific_text"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    items = read_amazon2018_processed(folder, "Scientific").items
    assert items.titles[1].as_py() == "Stanley TRA708T Sharpshooter 1/2-Inch Leg Length Staples, Steel (1000 Count)"
    assert items.labels[1].as_py() == [
        "category: Industrial & Scientific", "category: Fasteners", "category: Collated Fasteners", "category: Staples",
        "brand: Stanley",
    ]  # fmt: skip


def test_a_folder_without_the_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InteractionsError, match=r"items\.parquet: no such file"):
        read_movielens_tastes(tmp_path)
