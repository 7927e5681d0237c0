"""Investigations whose results stand in the docs: simulations, labs, comparisons and their plans."""
