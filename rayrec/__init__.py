"""rayrec: a Ray-based experimentation service for recommender and ads models."""

import gc

__version__ = "0.1.0"

# Python looks for cycles after 700 new objects: 1.1 s of the 5.6 s of CPU that a job's imports take, and they leave none.
if gc.get_threshold()[0] == 700:
    gc.set_threshold(50_000, 10, 10)
