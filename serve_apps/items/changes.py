"""A replica's view of what changed about items, as its model's thread reads it."""

from collections.abc import Sequence

from serve_apps.items.journal import AddedItem, Availability, Update


class ItemChanges:
    """Written by one thread (``take``), read by others; what a reader holds does not change under it.

    epoch, version: where this view stands. out: names of items that are taken out; a new set after each change of it.
    """

    def __init__(self) -> None:
        self.epoch, self.version = "", -1
        self.out: frozenset[str] = frozenset()
        self._added: list[AddedItem] = []

    def take(self, update: Update) -> None:
        """Stand where ``update`` leads."""
        out = set() if update.whole else set(self.out)
        added = [] if update.whole else self._added
        for change in update.changes:
            if isinstance(change, AddedItem):
                added.append(change)
            elif isinstance(change, Availability):
                out.discard(change.item) if change.available else out.add(change.item)
        if out != self.out:
            self.out = frozenset(out)
        self._added = added
        self.epoch, self.version = update.epoch, update.version

    def added(self, start: int) -> Sequence[AddedItem]:
        """All from the ``start``-th on, in the order in which they came; of all retrievers."""
        return self._added[start:]

    @property
    def count(self) -> int:
        return len(self._added)
