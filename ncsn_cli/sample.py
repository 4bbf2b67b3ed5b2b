"""``ncsn-sample``: run a sampler with a learned or the exact score, and measure its samples."""

from __future__ import annotations

import io
import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor
from tqdm import tqdm

from ncsn_cli.checkpoints import find_checkpoint, load_checkpoint
from ncsn_cli.evaluation import compose_scene, evaluate_samples
from ncsn_cli.jobs import (
    Config,
    SampleSettings,
    build_from_checkpoint,
    choose_device,
    draw,
    instantiate,
    instantiate_list,
    open_folder,
    read_config,
    settings,
)
from ncsn_cli.metrics import SampleMetric, ScoreError
from ncsn_cli.runs import to_json
from ncsn_cli.samplers import Init, Sampler
from ncsn_cli.schedules import Schedule
from ncsn_cli.scores import (
    BadCheckpointError,
    ConfigError,
    Dataset,
    DivergedError,
    Score,
    random_stream,
)

log = logging.getLogger(__name__)

_FRAMES = 200  # at most so many states of a kept chain


_WITHOUT_CHECKPOINT: dict[str, Config] = {
    "schedule": {"_target_": "ncsn_cli.schedules.Single", "sigma": 0.0},
    "init": {"_target_": "ncsn_cli.samplers.Prior"},
}


def sample(cfg: DictConfig) -> None:
    """Everything that can be refused is refused before the run begins."""
    config = read_config(cfg)
    run: SampleSettings = settings(SampleSettings, config)
    device = choose_device(run.device)
    tensors, trained = _read_checkpoint(run)
    dataset: Dataset = _object(config, trained, "dataset")
    schedule: Schedule = _object(config, trained, "schedule")
    sampler: Sampler = _object(config, trained, "sampler")
    init: Init = _object(config, trained, "init")
    metrics = instantiate_list(config, "metric")
    of_samples = {k: m for k, m in metrics.items() if isinstance(m, SampleMetric)}
    of_score = {k: m for k, m in metrics.items() if isinstance(m, ScoreError)}
    for name in metrics.keys() - of_samples.keys() - of_score.keys():
        raise ConfigError(f"metric.{name}: it should be a SampleMetric of ncsn_cli.metrics")
    plots = instantiate_list(config, "plot")
    plan = sampler.levels(schedule.sigmas)  # (sigma, tau, steps) a level
    last_sigma = plan[-1][0]
    config = {key: config[key] for key in config if key not in ("loss", "optimizer", "trainer")}
    dataset.score(torch.zeros(1, dataset.dim), last_sigma)  # refuses where there is none
    network = None
    if run.score == "checkpoint":
        network = _network(config, trained, tensors, dataset.dim).to(device)
        level = torch.tensor(last_sigma, device=device)
        network(torch.zeros(1, dataset.dim, device=device), level)  # refuses sigma = 0 if it must
    score: Score = dataset.score if network is None else network

    facts = {"device": str(device), "seed": run.seed}
    with open_folder(config, facts) as folder, torch.no_grad():
        _log_plan(sampler, plan)
        sigmas = torch.tensor([sigma for sigma, _, _ in plan], dtype=torch.float64)
        start = time.monotonic()
        chains = _run_chains(run, score, dataset, schedule, sampler, init, device)
        seconds = round(time.monotonic() - start, 3)
        folder.write("samples.npz", _npz(chains))
        samples = torch.from_numpy(chains["samples"])
        report: dict[str, Any] = {
            "num_samples": run.num_samples,
            "seconds": seconds,
            "score_evaluations": sampler.num_steps(schedule.sigmas),
        }
        entries = {  # keyed by level: at sigma = 0 both targets are p itself
            sigma: evaluate_samples(samples, dataset, sigma, of_samples, run.seed)
            for sigma in dict.fromkeys([0.0, last_sigma])
        }
        report |= {"clean": entries[0.0], "perturbed": entries[last_sigma]}
        for name, metric in of_score.items():
            stream = random_stream(run.seed, name, device)
            report[name] = metric(score, dataset, sigmas, stream)
        folder.write("metrics.json", to_json(report))
        exact = random_stream(run.seed, "exact draws shown")
        scene = compose_scene(
            dataset,
            sigmas,
            device,
            score=network,
            samples=chains["samples"],
            exact=dataset.sample(run.num_samples, sigma=last_sigma, generator=exact).numpy(),
            paths=chains["trajectories"],
            path_steps=chains["steps"],
            path_sigmas=None if chains["trajectories"] is None else chains["sigmas"],
        )
        draw(folder, plots, scene)
        log.info("everything is in %s", folder.path)


def _read_checkpoint(run: SampleSettings) -> tuple[dict[str, Tensor], Config]:
    """The tensors and the configuration of the checkpoint; both empty without one."""
    if run.checkpoint is None:
        if run.score == "checkpoint":
            raise ConfigError("checkpoint: give the folder of a run of ncsn-train, or score=exact")
        return {}, {}
    path = find_checkpoint(Path(run.checkpoint))
    tensors, record = load_checkpoint(path)
    if not isinstance(record.get("config"), dict):
        raise BadCheckpointError(f"{path}: this checkpoint has no configuration")
    return tensors, record["config"]


def _object(config: Config, trained: Config, key: str) -> Any:  # noqa: ANN401
    """The group's object, its settings put into ``config``.

    An option that the user chose replaces the checkpoint's; single values merge into it.
    """
    chosen = config.get(key) or {}
    base = trained.get(key) or _WITHOUT_CHECKPOINT.get(key) or {}
    if "_target_" in chosen or not base:
        return instantiate(config, key)
    config[key] = {**base, **chosen}
    return build_from_checkpoint(config[key], key)


def _network(
    config: Config, trained: Config, tensors: dict[str, Tensor], dim: int
) -> torch.nn.Module:
    """The checkpoint's network, with its averaged weights where it has them."""
    named = (config.get("model") or {"_target_": None}).get("_target_", "")
    if named == "":
        raise ConfigError("model: its values are the checkpoint's; train another to change them")
    config["model"] = trained.get("model") or {}
    with torch.random.fork_rng(devices=[]):
        network = build_from_checkpoint(config["model"], "model", named, dim=dim)
    prefix = "ema.module." if "ema.n_averaged" in tensors else "network."
    weights = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    try:
        network.load_state_dict(weights)
    except RuntimeError:
        raise ConfigError(
            f"dataset: D = {dim} does not fit the checkpoint's network; choose another dataset"
        ) from None
    return network.eval()


def _log_plan(sampler: Sampler, plan: list[tuple[float, float, int]]) -> None:
    etas = [tau / sigma**2 for sigma, tau, _ in plan if sigma > 0]
    log.info(
        "%s: %d levels, sigma %g to %g, tau %.3g to %.3g%s",
        type(sampler).__name__, len(plan), plan[0][0], plan[-1][0], plan[0][1], plan[-1][1],
        f", eta = tau/sigma^2 {min(etas):.3g} to {max(etas):.3g}" if etas else "",
    )  # fmt: skip
    if etas and max(etas) >= 2:
        log.warning(
            "eta = tau/sigma^2 reaches %.3g: where p_sigma is no wider than sigma, chains are"
            " stable below 2 only; lower sampler.step_size", max(etas),
        )  # fmt: skip


def _run_chains(
    run: SampleSettings,
    score: Score,
    dataset: Dataset,
    schedule: Schedule,
    sampler: Sampler,
    init: Init,
    device: torch.device,
) -> dict[str, Any]:
    """The samples and the initial points, and the paths of ``run.trajectories`` chains."""
    stream = random_stream(run.seed, "chains", device)
    x = init(run.num_samples, dataset, float(schedule.sigmas[0]), stream)
    plan, total = sampler.levels(schedule.sigmas), sampler.num_steps(schedule.sigmas)
    initial, stride = x, -(-total // _FRAMES)
    frames = [(0, plan[0][0], x[: run.trajectories].cpu())]
    progress = tqdm(
        sampler.chain(score, x, schedule.sigmas, generator=stream),
        total=total, desc="sampling", unit="step", disable=None,
    )  # fmt: skip
    for step, (level, x) in enumerate(progress, start=1):
        sigma, tau, _ = plan[level]
        if step % stride == 0 or step == total:
            frames.append((step, sigma, x[: run.trajectories].cpu()))
            eta = f"{tau / sigma**2:.3g}" if sigma > 0 else "-"
            progress.set_postfix(level=f"{level + 1}/{len(plan)}", sigma=f"{sigma:.3g}", eta=eta)
            if not bool(torch.isfinite(x).all()):
                raise DivergedError(
                    f"a sample is not finite at step {step}, level {level + 1} (sigma ="
                    f" {sigma:g}); lower sampler.step_size"
                )
    kept_steps, kept_sigmas, kept = zip(*frames, strict=True)
    return {
        "samples": x.cpu().numpy(),
        "init": initial.cpu().numpy(),
        "trajectories": torch.stack(kept).numpy() if run.trajectories else None,
        "sigmas": np.array(kept_sigmas),
        "steps": np.array(kept_steps),
    }


def _npz(arrays: dict[str, Any]) -> bytes:
    kept = {"samples", "init"} if arrays["trajectories"] is None else arrays.keys()
    file = io.BytesIO()
    np.savez(file, **{name: arrays[name] for name in kept})
    return file.getvalue()
