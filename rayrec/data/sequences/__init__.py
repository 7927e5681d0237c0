"""User histories for sequential retrieval: one row a user on disk, splits that cannot leak, prefixes made on the fly."""

from rayrec.data.sequences.interactions import (
    Interactions,
    InteractionsError,
    ItemTable,
    SequenceData,
    read_sequences,
    write_sequences,
)
from rayrec.data.sequences.splits import Examples, SequenceSplit, leave_one_out, temporal_split

__all__ = [
    "Examples",
    "Interactions",
    "InteractionsError",
    "ItemTable",
    "SequenceData",
    "SequenceSplit",
    "leave_one_out",
    "read_sequences",
    "temporal_split",
    "write_sequences",
]
