"""Semantic IDs, item tries, constrained decoding and dense indexes. Knows torch and faiss only."""

import logging

logging.getLogger("faiss.loader").setLevel(logging.WARNING)  # else each process tells which build of faiss it loads
