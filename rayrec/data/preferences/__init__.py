"""Preferences of users in plain words: made, imported, matched to next items, and the five-axis benchmark of Mender."""
