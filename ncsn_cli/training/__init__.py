"""Fitting a score network."""

from ncsn_cli.training.trainer import Trainer as Trainer
