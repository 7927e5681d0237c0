"""Architectures, one file each, built from frozen configs. Knows torch and transformers only."""
