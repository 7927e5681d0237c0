"""Multi-task rankers over rows of a log."""
