"""The reference forecaster: the five packages, assembled.

`data`, `train`, `forecast` and `verify` are the four steps of an experiment; each reads and fills
one run folder and can be repeated: finished work is kept, interrupted work goes on.
"""
