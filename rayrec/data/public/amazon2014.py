"""Amazon 2014 5-core sets in the S3-Rec form: ``<Name>.txt`` (user item item ...) and ``<Name>_item2attributes.json``.

The split that S3-Rec, TIGER and LIGER report on; items have attribute ids but no text, and there are no timestamps.
"""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa

from rayrec.data.sequences.interactions import Interactions, InteractionsError, ItemTable, SequenceData
from rayrec.data.sequences.text_lines import numbered_lines

_MOST_ITEMS = 20_000_000


def read_amazon2014(folder: Path | str, name: str) -> SequenceData:
    """Read ``<folder>/<name>.txt`` and, if there, its attributes. Raises InteractionsError naming file and line."""
    file = Path(folder) / f"{name}.txt"
    users: list[str] = []
    histories: list[list[int]] = []
    for number, line in numbered_lines(file):
        user, *items = line.split()
        try:
            histories.append([int(item) for item in items])
        except ValueError:
            raise InteractionsError(f"{file}, line {number}: items must be whole numbers") from None
        if not items or min(histories[-1]) < 1:
            raise InteractionsError(f"{file}, line {number}: expected a user and item numbers from 1")
        if max(histories[-1]) > _MOST_ITEMS:
            most = f"above {_MOST_ITEMS:,}; items are numbered from 1 without gaps"
            raise InteractionsError(f"{file}, line {number}: item {max(histories[-1])} is {most}")
        users.append(user)
    if not users:
        raise InteractionsError(f"{file}: the file holds no users")
    offsets = np.concatenate([[0], np.cumsum([len(history) for history in histories])]).astype(np.int64)
    flat = np.concatenate([np.array(history, np.int32) for history in histories])
    count = int(flat.max())
    attributes: list[list[int]] = [[] for _ in range(count)]
    attribute_file = Path(folder) / f"{name}_item2attributes.json"
    if attribute_file.is_file():
        try:
            for item, ids in json.loads(attribute_file.read_text(encoding="utf-8")).items():
                if 1 <= int(item) <= count:
                    attributes[int(item) - 1] = sorted(ids)
        except (ValueError, TypeError, AttributeError) as error:
            raise InteractionsError(
                f"{attribute_file}: expected a JSON object of attribute lists by item: {error}"
            ) from None
    names = [str(item) for item in range(1, count + 1)]
    table = ItemTable.of(names, None, attributes)
    return SequenceData(Interactions(offsets, flat, count), table, pa.array(users), f"amazon2014 {name}")
