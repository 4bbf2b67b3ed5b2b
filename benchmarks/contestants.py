"""What ``speed.py`` times: this package through its own code, its commands, the C++ kernel.

A worker process serves one contestant: a request is a line of JSON, and so is the answer.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ncsn_cli.training.state import Training

Request = dict[str, Any]
Answer = dict[str, Any]
Work = Callable[[Request], Answer]
HERE = Path(__file__).resolve().parent


def configuration(name: str, overrides: list[str]) -> dict[str, Any]:
    """What ``ncsn-train`` or ``ncsn-sample`` reads from its overrides."""
    from hydra import compose, initialize_config_dir

    from ncsn_cli.commands.cli import config_dir
    from ncsn_cli.commands.config import read_config

    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        return read_config(compose(name, overrides))


def new_training(overrides: list[str]) -> Training:
    """The training that ``ncsn-train`` would begin."""
    import torch

    from ncsn_cli.commands.build import fit_schedule, instantiate, reference_data
    from ncsn_cli.commands.train_job import initial_model
    from ncsn_cli.training.state import Training
    from ncsn_cli.training.trainer import resolve_auto

    config = configuration("train", overrides)
    seed = config["seed"]
    trainer = instantiate(config, "trainer")
    dataset = instantiate(config, "dataset")
    data = reference_data(dataset, seed)
    sigmas = fit_schedule(instantiate(config, "schedule"), data)[0].sigmas
    model = initial_model(config, data, seed)
    optimizer = instantiate(config, "optimizer", params=model.parameters())
    loss = instantiate(config, "loss")
    points = loss.points(trainer.batch_size or len(data), len(sigmas))
    trainer = resolve_auto(trainer, model, optimizer, points, {})
    torch.set_num_threads(int(trainer.threads))
    return Training(trainer, model, optimizer, loss, dataset, sigmas, seed)


def ours() -> dict[str, Work]:
    """This package: ``training.fit`` and ``Sampling.run``, built as its commands build them."""
    import notebook
    import torch
    from samplers import METRIC, NUM, SIGMA_MAX, samplers

    from ncsn_cli.commands.build import instantiate
    from ncsn_cli.commands.startup import keep_freed_memory
    from ncsn_cli.core.dataset import Dataset
    from ncsn_cli.core.score import Score
    from ncsn_cli.core.settings import random_stream
    from ncsn_cli.evaluation.floors import noise_floor
    from ncsn_cli.metrics import fisher_divergence
    from ncsn_cli.sampling.run import Sampling
    from ncsn_cli.sampling.tile import Setup
    from ncsn_cli.schedules import Geometric, Karras
    from ncsn_cli.training.history import Row
    from ncsn_cli.training.loop import fit

    threads = torch.get_num_threads()  # torch's default, a notebook's
    keep_freed_memory()

    def train(overrides: list[str]) -> Answer:
        """``fit`` with its history; no evaluations but the last, no files, no snapshots."""
        training, history = new_training(overrides), list[Row]()
        start = time.perf_counter()
        fit(training, history, None, lambda: None)
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "steady": steady(history), "check": {"loss": late(history)}}

    def late(history: list[Row]) -> float:
        """Mean loss over the last tenth of the steps."""
        last = float(history[-1]["step"] or 0)
        return float(np.mean([row["loss"] for row in history if (row["step"] or 0) > 0.9 * last]))

    def steady(history: list[Row]) -> float:
        """Seconds that all steps would take at the pace of their second half."""
        steps, seconds = (
            np.array([row[key] for row in history], float) for key in ("step", "seconds")
        )
        middle = int(np.abs(steps - steps[-1] / 2).argmin())
        pace = (seconds[-1] - seconds[middle]) / (steps[-1] - steps[middle])
        return float(pace * steps[-1])

    def one_dimensional(request: Request) -> Answer:
        return train([
            "experiment=mdsm_1d", f"dataset.num_samples={request['points']}",
            f"schedule.num_levels={request['levels']}", f"trainer.steps={request['steps']}",
            f"trainer.batch_size={request['points']}", f"model.hidden=[{request['width']}]",
            f"trainer.eval_every={request['steps']}", f"seed={request.get('seed', 0)}",
            *request.get("overrides", []),
        ])  # fmt: skip

    def two_dimensional(request: Request) -> Answer:
        return train([
            "experiment=ncsn_2d", f"schedule.num_levels={request['levels']}",
            f"trainer.steps={request['steps']}", f"trainer.batch_size={request['batch']}",
            f"trainer.eval_every={request['steps']}", f"model.hidden=[{request['width']}]",
            *request.get("overrides", []),
        ])  # fmt: skip

    def run_chains(
        request: Request,
        num: int,
        num_paths: int,
        *setup: Any,  # noqa: ANN401
    ) -> tuple[Any, Answer]:
        """``Sampling.run`` as ``ncsn-sample`` calls it; what it compiles is told apart."""
        torch.set_num_threads(1)
        sampling = Sampling(
            Setup(*setup, torch.device("cpu")), num, num_paths=num_paths, keep_by_level=False,
            workers=request["cores"],
        )  # fmt: skip
        start, answer = time.perf_counter(), dict[str, Any]()
        if request.get("compile"):
            sampling.compile()
            answer["compile"] = time.perf_counter() - start
            start = time.perf_counter()
        with torch.no_grad():
            chains = sampling.run()
        return chains, {"seconds": time.perf_counter() - start, **answer}

    def sample(request: Request) -> Answer:
        arrays = list(np.load(request["weights"]).values())
        config = configuration("sample", [
            "experiment=ncsn_2d", f"schedule.num_levels={request['levels']}",
            f"sampler.steps_per_level={request['steps']}",
            f"model.hidden=[{arrays[4].shape[0]}]", f"num_samples={request['particles']}",
        ])  # fmt: skip
        model = instantiate(config, "model", dim=2)
        with torch.no_grad():
            for parameter, array in zip(model.parameters(), arrays, strict=True):
                parameter.copy_(torch.from_numpy(array))
        truth, init = instantiate(config, "dataset"), instantiate(config, "init")
        sampler = instantiate(config, "sampler")
        chains, answer = run_chains(
            request, config["num_samples"], config["trajectories"], sampler,
            sampler.levels(instantiate(config, "schedule").sigmas), model, None,
            lambda num, stream, first: init(num, truth, 20.0, stream), truth, 0,
        )  # fmt: skip
        workers = request["cores"] * memory(resource.RUSAGE_CHILDREN)
        return {**answer, "samples": chains.samples.numpy(), "workers": workers}

    def sweep(request: Request) -> Answer:
        runs = [one_dimensional({**request, "seed": seed}) for seed in range(request["seeds"])]
        loss = float(np.mean([run["check"]["loss"] for run in runs]))
        return {"seconds": sum(run["seconds"] for run in runs), "check": {"loss": loss}}

    def score_error(score: Score, truth: Dataset, sigmas: torch.Tensor) -> float:
        """Mean over levels of E||s - s*||^2/E||s*||^2, from the same draws at every call."""
        stream = random_stream(0, "quality against time")
        with torch.no_grad():
            errors = [
                fisher_divergence(score, truth, float(sigma), 10_000, stream).relative
                for sigma in sigmas
            ]
        return float(np.mean(errors))

    def quality(request: Request) -> Answer:
        """Score error after some seconds of training on 100 000 points, compilation included."""
        overrides = [*request["options"], "dataset.num_samples=100000"]
        if request["loop"] == "notebook":
            return quality_of_notebook(new_training(overrides), request["seconds"])
        probe, history = new_training([*overrides, "trainer.steps=600"]), list[Row]()
        fit(probe, history, None, lambda: None)
        pace = steady(history) / 600
        compiling = float(history[-1]["seconds"] or 0) - 600 * pace
        training, history = new_training([*overrides, "trainer.steps=1000000000"]), []
        points = []
        for limit in request["seconds"]:
            steps = int((limit - compiling) / pace)
            if steps < 1:
                continue
            if training.trainer.lr_decay != "none":  # it must know its end; others just go on
                training, history = new_training([*overrides, f"trainer.steps={steps}"]), []
            training.trainer = replace(training.trainer, max_seconds=float(limit))
            fit(training, history, None, lambda: None)
            error = score_error(training.score, training.dataset, training.sigmas)
            points.append((history[-1]["seconds"], training.step, error))
        return {"seconds": float(request["seconds"][-1]), "points": points}

    def quality_of_notebook(like: Training, limits: list[float]) -> Answer:
        """The same for P2's loop in a notebook, on the same data and levels."""
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        truth, sigmas, data = like.dataset, like.sigmas, like.dataset.training_set()
        assert data is not None
        model = notebook.ScoreModel(truth.dim, 16, 128)
        loop, points, steps, seconds = notebook.train(model, data, sigmas, 128), [], 0, 0.0

        def score(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
            return model(x, sigma.reshape(-1, 1).expand(len(x), 1))

        for limit in limits:
            start = time.perf_counter() - seconds
            while time.perf_counter() - start < limit:
                next(loop)
                steps += 1
            seconds = time.perf_counter() - start
            points.append((seconds, steps, score_error(score, truth, sigmas)))
        return {"seconds": seconds, "points": points}

    def sliced_wasserstein(request: Request) -> Answer:
        """Distance over its noise floor after a sampler's run with the exact score."""
        truth = instantiate(configuration("train", [f"dataset={request['dataset']}"]), "dataset")
        std = truth.smallest_std
        sampler, num_levels = samplers(request["evaluations"], std / 2, std)[request["sampler"]]
        schedule = (
            Karras(SIGMA_MAX, std / 2, num_levels, 7.0)
            if sampler.descends
            else Geometric(SIGMA_MAX, std / 2, num_levels)
        )
        init = instantiate(configuration("train", ["init=prior"]), "init")
        chains, answer = run_chains(
            request, NUM, 0, sampler, sampler.levels(schedule.sigmas), truth.score, truth.log_prob,
            lambda num, stream, first: init(num, truth, SIGMA_MAX, stream), truth, request["seed"],
        )  # fmt: skip
        floor = noise_floor(METRIC, truth, std / 2, NUM, Path(request["folder"], "floors"))
        distance = METRIC.distance(truth, std / 2, NUM)
        ratio = distance(chains.samples, random_stream(request["seed"], "exact draws"))
        return {**answer, "ratio": ratio / floor["floor"]}

    return {
        "P1": one_dimensional, "P2": two_dimensional, "P3": sample, "P4": sweep,
        "quality": quality, "sliced_wasserstein": sliced_wasserstein,
    }  # fmt: skip


def command() -> dict[str, Work]:
    """The real commands, from start to end."""

    def run(request: Request) -> Answer:
        with tempfile.TemporaryDirectory() as folder:
            target = request.get("folder", folder)
            where = "hydra.sweep.dir" if "-m" in request["words"] else "hydra.run.dir"
            name, *overrides = request["words"]
            words = [str(Path(sys.executable).parent / name), *overrides, f"{where}={target}"]
            start = time.perf_counter()
            done = subprocess.run(words, capture_output=True, text=True, check=False)
            seconds = time.perf_counter() - start
            if done.returncode != 0:
                raise RuntimeError(done.stderr[-2000:])
            found = [json.loads(path.read_text()) for path in Path(target).rglob("metrics.json")]
        losses = [metrics["loss"] for metrics in found if "loss" in metrics]
        check = {"runs": len(found)} | ({"loss": float(np.mean(losses))} if losses else {})
        return {"seconds": seconds, "check": check}

    return {"command": run}


def kernel() -> dict[str, Work]:
    """The fused loops of ``langevin_kernel.cpp``, built into a temporary folder."""
    compiler = next(filter(None, map(shutil.which, ("g++", "clang++", "c++"))))
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder, "kernel.so")
        flags = ["-O3", "-march=native", "-ffast-math", "-shared", "-fPIC", "-pthread"]
        source = str(HERE / "langevin_kernel.cpp")
        wide = ["-mprefer-vector-width=512"]
        start = time.perf_counter()
        for extra in (wide, []):  # only x86 knows it
            words = [str(compiler), *flags, *extra, source, "-o", str(built)]
            done = subprocess.run(words, capture_output=True, text=True, check=False)
            if done.returncode == 0:
                break
        else:
            raise RuntimeError(done.stderr[-2000:])
        compiling = time.perf_counter() - start
        anneal = ctypes.CDLL(str(built)).anneal
    anneal.restype = ctypes.c_double
    numbers = ctypes.POINTER(ctypes.c_float)

    def sample(request: Request) -> Answer:
        w0, b0, w1, b1, w2, b2, w3, b3 = np.load(request["weights"]).values()
        sigmas = np.geomspace(20, 0.1, request["levels"])
        shifts = np.maximum(sigmas[:, None] * w0[:, 0] + b0, 0) @ w1.T + b1
        shifts = shifts @ w2[:, 2:].T + b2  # (L, H): what a level adds to the hidden layer
        taus = 0.0005 * (sigmas / sigmas[-1]) ** 2
        x = np.random.default_rng(0).uniform(-8, 8, (request["particles"], 2))
        arrays = [
            np.ascontiguousarray(a, np.float32) for a in (x, w2[:, :2], shifts, w3, b3, taus)
        ]
        points, into, bias, out, exit_bias, steps = (a.ctypes.data_as(numbers) for a in arrays)
        seconds = anneal(
            points, len(x), into, bias, out, exit_bias, len(w2), steps, len(sigmas),
            request["steps"], request["cores"], ctypes.c_uint64(0), int(request["tuned"]),
        )  # fmt: skip
        return {"seconds": seconds, "compile": compiling, "samples": arrays[0]}

    return {"P3": sample}


CONTESTANTS: dict[str, Callable[[], dict[str, Work]]] = {
    "ours": ours,
    "command": command,
    "kernel": kernel,
    "notebook": lambda: importlib.import_module("notebook").WORKS,
    "jax": lambda: importlib.import_module("jax_peer").WORKS,
}


def in_modes(x: np.ndarray) -> dict[str, float]:
    """Of samples (N, 2): the share in the small mode, and that within 3.2 of a mode (.994)."""
    distances = [np.linalg.norm(x - centre, axis=1) for centre in (-5.0, 5.0)]
    near = float((np.minimum(*distances) < 3.2).mean())
    return {"small mode": float((x.sum(1) > 0).mean()), "near a mode": near}


def memory(who: int = resource.RUSAGE_SELF) -> float:
    """Peak so far of this process, or of the largest of its children that have ended, MiB."""
    peak = resource.getrusage(who).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def serve(name: str, cores: int) -> None:
    """Answer requests until there are no more; a request not seen before is run twice."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print does not disturb
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    works = CONTESTANTS[name]()
    seen = set()
    for line in sys.stdin:
        request = json.loads(line)
        answer: Answer = {"memory_before": memory()}
        if request.get("warm", True) and line not in seen:
            start = time.perf_counter()
            works[request["work"]](request)
            answer["first"] = time.perf_counter() - start
            seen.add(line)
        gc.collect()
        answer |= works[request["work"]](request)
        if "samples" in answer:
            answer["check"] = in_modes(answer.pop("samples"))
        print(json.dumps({**answer, "memory": memory()}), file=answers, flush=True)
