"""Families of models, a folder each: ``task`` (what is learned), ``experiment`` (config to streams), ``bundle`` (on disk)."""
