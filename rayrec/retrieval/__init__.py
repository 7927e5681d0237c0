"""Semantic IDs, item tries, constrained decoding and dense indexes. Knows torch and faiss only."""
