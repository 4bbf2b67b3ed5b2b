"""Scores and samples held against the truth."""
