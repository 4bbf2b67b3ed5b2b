"""Compute the noise floors that come with the package: presets, default metrics and numbers.

    python -m benchmarks.floors

writes ``ncsn_cli/evaluation/floors.json``, in a few minutes. Do so after a change of a preset's
law, of a metric or of a default number: floors that no longer apply are not found, and cost time.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

import ncsn_cli.commands.cli  # registers the resolvers of the configs  # noqa: F401
from ncsn_cli.commands.cli import config_dir
from ncsn_cli.core.dataset import Law
from ncsn_cli.evaluation import floors
from ncsn_cli.metrics import SampleMetric

SIGMAS = (0.0, 0.1)  # the data, and sigma_min of the default schedule


def requests() -> Iterator[tuple[str, SampleMetric, Law, float, int]]:
    """Yield a preset, a default metric, the preset's law, a level and the default number."""
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        defaults = compose("sample")
        metrics = [instantiate(values, _convert_="all") for values in defaults.metric.values()]
        for file in sorted((config_dir() / "dataset").glob("*.yaml")):
            if file.stem != "mixture":
                values = compose("sample", [f"dataset={file.stem}"]).dataset
                dataset = instantiate(values, _convert_="all")
                for metric in metrics:
                    if isinstance(metric, SampleMetric):
                        for sigma in SIGMAS:
                            law = dataset.truth.centred()
                            yield file.stem, metric, law, sigma, defaults.num_samples


def main() -> None:
    """Write the file, once all floors are computed."""
    found: dict[str, floors.Floor] = {}
    with patch.object(floors, "shipped", dict):  # none, or they would not be computed again
        for preset, metric, law, sigma, num in requests():
            floors._kept.clear()
            floors.noise_floor(metric, law, sigma, num)
            ((name, floor),) = floors._kept.items()
            found[name] = floor
            print(preset, metric, sigma, floor, flush=True)
    lines = [f"{json.dumps(name)}: {json.dumps(floor)}" for name, floor in found.items()]
    Path(floors.SHIPPED).write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
