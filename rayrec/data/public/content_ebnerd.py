"""EB-NeRD (Kruse et al. 2024): Parquet files of behaviors and histories, train and validation, and articles.parquet where it is.

train/behaviors.parquet, train/history.parquet, validation/... as distributed, or train_behaviors.parquet, ... side by side. A
validation user is of the validation split with probability ``valid_share``, else of the test. The demo sample comes without
article text: items then are known by number only, and nothing can be learned from what they say.
"""

from dataclasses import dataclass
from pathlib import Path

from rayrec.data.content import ContentError, ContentLog, ItemTexts, TextField
from rayrec.data.content.assembling import Assembly, share_of
from rayrec.data.content.raw import read_columns

FIELDS = (
    TextField("title", "News Title", 32), TextField("subtitle", "News Abstract", 72), TextField("category", "News Category", 8)
)  # fmt: skip
_ARTICLES = ("article_id", "title", "subtitle", "category_str")


@dataclass(frozen=True)
class Ebnerd:
    """How the archives become impressions."""

    articles: str = "articles.parquet"
    """File of article texts in the source; where it is not there, items have no text, which is noted."""
    valid_share: float = 0.1
    """Of the validation users."""
    max_history: int = 60
    """Newest clicks kept."""

    def __post_init__(self) -> None:
        if not 0 < self.valid_share < 1 or self.max_history < 1:
            raise ValueError("valid_share must lie in (0, 1), max_history be at least 1")

    def read(self, source: Path) -> ContentLog:
        """Raises ContentError that names the file, row and column that is wrong."""
        numbers: dict[int, int] = {}
        texts: dict[str, list[str]] = {one.name: [] for one in FIELDS}
        file = source / self.articles
        if file.is_file():
            table = read_columns(file, _ARTICLES)
            numbers = {article: row + 1 for row, article in enumerate(table["article_id"].to_pylist())}
            texts = {f.name: table[column].to_pylist() for f, column in zip(FIELDS, _ARTICLES[1:], strict=True)}
        with_text, seen = len(numbers), Assembly(self.max_history)
        unknown_users = outside = 0
        for part in ("train", "validation"):
            history = read_columns(_file(source, part, "history"), ("user_id", "article_id_fixed"))
            clicks = dict(zip(history["user_id"].to_pylist(), history["article_id_fixed"].to_pylist(), strict=True))
            behaviors = _file(source, part, "behaviors")
            shown = read_columns(behaviors, ("user_id", "article_ids_inview", "article_ids_clicked"))
            columns = (shown[name].to_pylist() for name in ("user_id", "article_ids_inview", "article_ids_clicked"))
            for row, (user, inview, clicked) in enumerate(zip(*columns, strict=True)):
                if user is None or inview is None or clicked is None:
                    raise ContentError(f"{behaviors}: row {row} has no user, no articles in view or none clicked")
                unknown_users += user not in clicks
                outside += not set(clicked) <= set(inview)
                split = "train" if part == "train" else "valid" if share_of(str(user)) < self.valid_share else "test"
                read = [numbers.setdefault(one, len(numbers) + 1) for one in reversed(clicks.get(user, []))]
                candidates = list(dict.fromkeys(inview))
                seen.impression(
                    split, seen.history(str(user), read),
                    [numbers.setdefault(one, len(numbers) + 1) for one in candidates],
                    [int(one in clicked) for one in candidates],
                )  # fmt: skip
        without = len(numbers) - with_text
        padded = {name: [*column, *[""] * without] for name, column in texts.items()}
        notes = {
            "articles_without_text": without, "impressions_without_history": unknown_users,
            "impressions_with_clicks_out_of_view": outside,
        }  # fmt: skip
        return seen.log(ItemTexts.of([str(one) for one in numbers], FIELDS, padded), "EB-NeRD", notes)


def _file(source: Path, part: str, what: str) -> Path:
    """As distributed, or side by side."""
    nested = source / part / f"{what}.parquet"
    return nested if nested.is_file() else source / f"{part}_{what}.parquet"
