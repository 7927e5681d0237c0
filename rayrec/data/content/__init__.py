"""Content logs: items that are texts, users with histories, impressions with candidates; and their tokens.

See ``rayrec.data.content.log`` for what lies on disk.
"""

from rayrec.data.content.lists import Lists
from rayrec.data.content.log import (
    Before,
    ContentError,
    ContentLog,
    Impressions,
    ItemTexts,
    TextField,
    UserTexts,
    add_user_texts,
    read_content,
    write_content,
)

__all__ = [
    "Before", "ContentError", "ContentLog", "Impressions", "ItemTexts", "Lists", "TextField", "UserTexts", "add_user_texts",
    "read_content", "write_content",
]  # fmt: skip
