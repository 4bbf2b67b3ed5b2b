"""Noise conditional score networks on mixtures whose score is known."""

__version__ = "0.1.0"
