"""Training on fields of which no rank holds all: the same losses on any number of ranks."""
