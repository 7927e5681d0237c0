"""What is known of items when a request comes: a table of a bundle's own kind, one row an item, read from mapped memory."""

from rayrec.item_features.bundle import KIND, ItemColumn, ItemSchema, write_item_features
from rayrec.item_features.pairs import ItemFeaturesError, PairFeature
from rayrec.item_features.table import ItemTable, load_item_features

__all__ = [
    "KIND",
    "ItemColumn",
    "ItemFeaturesError",
    "ItemSchema",
    "ItemTable",
    "PairFeature",
    "load_item_features",
    "write_item_features",
]
