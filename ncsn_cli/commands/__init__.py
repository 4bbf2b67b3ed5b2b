"""The commands, where alone Hydra, OmegaConf and argparse live."""
