"""MovieLens: ``ratings.csv`` + ``movies.csv`` (20M, 25M, 32M, latest) or ``ratings.dat`` + ``movies.dat`` (1M, 10M)."""

from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pacsv

from rayrec.data.sequences.events import EventFilter, ItemDescriptions, sequences_of_events
from rayrec.data.sequences.interactions import InteractionsError, SequenceData


def read_movielens(folder: Path | str, event_filter: EventFilter) -> SequenceData:
    """Every rating is an event. Text: title and genres. Raises InteractionsError when neither form is in ``folder``."""
    folder = Path(folder)
    if (folder / "ratings.csv").is_file():
        ratings = _read(folder / "ratings.csv", None, ("userId", "movieId", "timestamp"))
        movies = _read(folder / "movies.csv", None, ("movieId", "title", "genres"))
    elif (folder / "ratings.dat").is_file():
        ratings = _read(folder / "ratings.dat", ["userId", "movieId", "rating", "timestamp"])
        movies = _read(folder / "movies.dat", ["movieId", "title", "genres"])
    else:
        raise InteractionsError(f"{folder}: neither ratings.csv nor ratings.dat is here")
    texts, attributes, titles = {}, {}, {}
    for movie, title, genres in zip(
        *(movies.column(c).to_pylist() for c in ("movieId", "title", "genres")), strict=True
    ):
        kinds = [genre for genre in str(genres).split("|") if genre and genre != "(no genres listed)"]
        texts[str(movie)] = f"Title: {title}." + (f" Genres: {', '.join(kinds)}." if kinds else "")
        attributes[str(movie)] = tuple(kinds)
        titles[str(movie)] = str(title)
    users, rated, times = (ratings.column(name) for name in ("userId", "movieId", "timestamp"))
    descriptions = ItemDescriptions(texts, attributes, titles)
    return sequences_of_events(users, rated, times, event_filter, descriptions, f"movielens {folder.name}")


def _read(file: Path, names: list[str] | None, wanted: tuple[str, ...] = ()) -> pa.Table:
    """A comma-separated file with a header, or a ``::``-separated one (as ``names``) in the old files' latin-1."""
    if not file.is_file():
        raise InteractionsError(f"{file}: no such file")
    try:
        if names is None:
            texts = dict.fromkeys(("userId", "movieId", "title", "genres"), pa.string())
            convert = pacsv.ConvertOptions(column_types=texts, null_values=[""], strings_can_be_null=True)
            table = pacsv.read_csv(file, convert_options=convert)
            for name in wanted:
                if name not in table.column_names:
                    there = ", ".join(table.column_names)
                    raise InteractionsError(f"{file}: column {name!r} is missing; found {there}")
            return table
        rows = file.read_text(encoding="latin-1").splitlines()
        columns = zip(*(row.split("::") for row in rows), strict=True)
        table = pa.table(dict(zip(names, (pa.array(column) for column in columns), strict=True)))
        numbers = [name for name in ("timestamp",) if name in names]
        for name in numbers:
            index = table.schema.get_field_index(name)
            table = table.set_column(index, name, table.column(name).cast(pa.int64()))
        return table
    except InteractionsError:
        raise
    except (pa.ArrowInvalid, ValueError) as error:
        raise InteractionsError(f"{file}: {error}") from None
