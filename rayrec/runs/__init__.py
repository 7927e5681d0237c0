"""One run or many: Ray Train and Ray Tune drivers, comparisons, their reports."""
