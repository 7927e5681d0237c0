"""Experiments in traffic: who sees which version, what was decided, what came of it, and whether a new version goes live."""
