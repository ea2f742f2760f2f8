"""Verification of probabilistic weather forecasts: named conventions, tested significance, scorecards."""

from importlib.metadata import version as _version

__version__ = _version("wx-eval")
