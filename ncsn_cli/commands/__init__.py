"""The commands: the only part of the package that uses Hydra, OmegaConf and argparse."""
