"""Running the chains of a sampler from ``samplers/``: in parallel, saved and resumed."""
