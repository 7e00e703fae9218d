"""The public data sets of RETFound's benchmark: what a downloaded copy must look like, and whether it does."""
