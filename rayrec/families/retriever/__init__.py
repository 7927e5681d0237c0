"""Sequential retrievers: from a history to ranked items."""
