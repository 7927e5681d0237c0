"""Yelp open data set: ``yelp_academic_dataset_review.json`` and ``..._business.json`` (JSON lines)."""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pajson

from rayrec.data.sequences.events import EventFilter, ItemDescriptions, sequences_of_events
from rayrec.data.sequences.interactions import InteractionsError, SequenceData

_REVIEWS = "yelp_academic_dataset_review.json"
_BUSINESSES = "yelp_academic_dataset_business.json"


def read_yelp(folder: Path | str, event_filter: EventFilter, *, since: str | None = None) -> SequenceData:
    """Every review is an event; ``since`` ("2019-01-01", as S3-Rec cuts it) drops older ones. Text: name, city, categories."""
    folder = Path(folder)
    reviews = _read(folder / _REVIEWS, {"user_id": pa.string(), "business_id": pa.string(), "date": pa.string()})
    if since is not None:
        reviews = reviews.filter(pc.greater_equal(reviews.column("date"), since))
    fields = {name: pa.string() for name in ("business_id", "name", "city", "categories")}
    businesses = _read(folder / _BUSINESSES, fields)
    texts, attributes, titles = {}, {}, {}
    for business, name, city, categories in zip(*(businesses.column(c).to_pylist() for c in fields), strict=True):
        kinds = [kind.strip() for kind in (categories or "").split(",") if kind.strip()]
        parts = [("Name", name), ("City", city), ("Categories", ", ".join(kinds))]
        texts[business] = " ".join(f"{label}: {value}." for label, value in parts if value)
        attributes[business] = tuple(kinds)
        titles[business] = name or ""
    times = pc.cast(pc.strptime(reviews.column("date"), format="%Y-%m-%d %H:%M:%S", unit="s"), pa.int64())
    return sequences_of_events(
        reviews.column("user_id"), reviews.column("business_id"), times, event_filter,
        ItemDescriptions(texts, attributes, titles), f"yelp {folder.name}",
    )  # fmt: skip


def _read(file: Path, fields: dict[str, pa.DataType]) -> pa.Table:
    if not file.is_file():
        raise InteractionsError(f"{file}: no such file")
    options = pajson.ParseOptions(explicit_schema=pa.schema(list(fields.items())), unexpected_field_behavior="ignore")
    try:
        return pajson.read_json(file, parse_options=options)
    except pa.ArrowInvalid as error:
        raise InteractionsError(f"{file}: {error}") from None
