"""rayrec: a Ray-based experimentation service for recommender and ads models."""

__version__ = "0.1.0"
