"""rayrec: a Ray-based experimentation service for recommender and ads models."""
