"""rayrec: a Ray-based experimentation service for recommender and ads models."""

import gc

__version__ = "0.1.0"

# For the whole process. By Python's 700 new objects, searches for cycles took 1.1 s of CPU while a driver under Ray imported all
# that it uses, by these 0.3 s (one run each, timed by gc.callbacks); of the CPU of a run in process that was not told apart, nor
# of its memory (a small SASRec: peaks of 614 and 621 MB by 700, 620 and 651 by these).
if gc.get_threshold()[0] == 700:
    gc.set_threshold(50_000, 10, 10)
