"""Compare scores and samples with the truth."""
