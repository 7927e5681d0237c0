"""Content rankers: SPAR, EmbSum and what they are compared with, over the impressions of a content log."""
