"""A small sweep."""

STEPS = 400


QUICK = [
    f"trainer.steps={STEPS}", "trainer.batch_size=16", "trainer.eval_every=200",
    "trainer.checkpoint_every=20", "dataset.num_samples=100", "schedule.num_levels=2",
    "schedule.sigma_max=1", "model.hidden=[8]", "plot=[]",
]  # fmt: skip


def folders(sweep):
    return sorted(path.parent for path in sweep.glob("*/run.json"))
