"""Layers that several architectures share. Knows torch only."""
