"""What changes about items, kept and followed in one process: the owner's file without its actor."""

from pathlib import Path

from serve_apps.items.changes import ItemChanges
from serve_apps.items.journal import AddedItem, Availability, ItemJournal


class LocalItems:
    """changes: up to date after each change. A new one of the same folder begins with what is in its file."""

    def __init__(self, folder: Path) -> None:
        self.journal, self.changes = ItemJournal(folder), ItemChanges()
        self._follow()

    async def add(self, item: AddedItem, most: int) -> bool:
        self.journal.add(item, most)
        return self._follow()

    async def set_available(self, change: Availability) -> bool:
        self.journal.set_available(change)
        return self._follow()

    def _follow(self) -> bool:
        self.changes.take(self.journal.since(self.changes.epoch, self.changes.version))
        return True
