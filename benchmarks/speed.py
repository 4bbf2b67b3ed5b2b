"""How fast training and sampling are, beside notebook loops, JAX and a fused C++ kernel.

    python benchmarks/speed.py [PART ...] [--repeats 5] [--cores 2] [--quick] [--set KEY=VALUE ...]
    python benchmarks/speed.py report

Parts: P1 P2 P3 P4 P5 commands growth memory quality; without one all of them, then the report.
Every contestant has a process of its own that lives as long as a part; they are asked in turn for
one repeat at a time, so that a busy machine disturbs all alike. Slow contestants do a stated
share of the steps. Each repeat is appended to ``outputs/bench/speed.jsonl``: a benchmark that was
stopped goes on where it was, and ``--fresh`` begins anew. ``report`` writes
docs/results/performance.md and its pictures. ``--quick`` shrinks every work, to see that all of
it runs, and keeps it all in ``outputs/bench/``. ``--set`` gives overrides of ``ncsn-train`` to
this package's trainings. Nothing is asserted.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import contestants
import numpy as np

FOLDER = contestants.HERE.parent / "outputs" / "bench"
PARTS = {  # and about so many minutes on two quiet cores
    "P1": 1, "P2": 3, "P3": 3, "P4": 6, "P5": 4, "commands": 3, "growth": 6, "memory": 2,
    "quality": 9,
}  # fmt: skip
P1 = {"work": "P1", "points": 1024, "levels": 16, "steps": 1000, "width": 64}
P2 = {"work": "P2", "batch": 128, "levels": 100, "steps": 30_000, "width": 128}
P3 = {"work": "P3", "particles": 5000, "levels": 100, "steps": 1000}
SAMPLING = {
    "ours": {"compile": True},
    "notebook": {},
    "jax": {},
    "kernel": {"tuned": False},
    "kernel, tuned": {"tuned": True},
}


@dataclass
class Job:
    """One contestant's work, to be repeated.

    Args:
        label: Name in the tables.
        request: What its worker is asked for.
        scale: By which its seconds are multiplied, where it does a share of the steps.
        repeats: At most so many.
        entry: What the report groups by.
        fresh: Whether each repeat has a process of its own.
    """

    label: str
    request: dict[str, Any]
    scale: float = 1.0
    repeats: int = 1000
    entry: dict[str, Any] = field(default_factory=dict)
    fresh: bool = False

    @property
    def worker(self) -> str:
        """The process that answers."""
        return self.label.split(",")[0]


class Worker:
    """A contestant's process."""

    def __init__(self, name: str, cores: int) -> None:
        words = [sys.executable, __file__, "worker", name, "--cores", str(cores)]
        # Compiled code of earlier benchmarks would hide what compiling costs.
        cache = FOLDER / "compiled" / f"{name}-{os.getpid()}-{time.monotonic_ns()}"
        env = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(cache), "PYTHONWARNINGS": "ignore"}
        self._cache, self._log = cache, (FOLDER / f"{name}.log").open("a")
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            words, stdin=pipe, stdout=pipe, stderr=self._log, text=True, env=env, cwd=FOLDER
        )

    def ask(self, request: dict[str, Any]) -> dict[str, Any] | None:
        """Its answer; None if it failed."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            print(json.dumps(request), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        except BrokenPipeError:
            return None
        return json.loads(line) if line else None

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
        self._log.close()
        shutil.rmtree(self._cache, ignore_errors=True)


@dataclass
class Bench:
    """Settings of this benchmark, and its file."""

    path: Path
    repeats: int
    cores: int
    quick: bool
    overrides: list[str]

    def records(self) -> list[dict[str, Any]]:
        """All repeats so far."""
        if not self.path.exists():
            return []
        found = []
        for line in self.path.read_text().splitlines():
            with contextlib.suppress(ValueError):  # cut where a benchmark was killed
                found.append(json.loads(line))
        return found

    def append(self, record: dict[str, Any]) -> None:
        """Keep a record, on a line of its own."""
        cut = self.path.exists() and not self.path.read_text().endswith("\n")
        with self.path.open("a") as file:
            print("\n" * cut + json.dumps(record), file=file)

    def measure(self, part: str, jobs: list[Job]) -> None:
        """All repeats of all jobs that are not there yet, in turn."""
        jobs = [job for job in jobs if available(job.worker)]
        if self.quick:
            jobs = [shrunk(job) for job in jobs]
        for job in jobs:
            if job.worker == "ours" and self.overrides:
                job.request["overrides"] = [*job.request.get("overrides", []), *self.overrides]
            job.request["cores"] = self.cores
        done: dict[str, int] = {}
        for record in self.records():
            key = json.dumps([record["part"], record["label"], record["request"]])
            done[key] = done.get(key, 0) + 1
        workers: dict[str, Worker] = {}
        began, failed = time.monotonic(), set[str]()
        with contextlib.ExitStack() as stack:
            for repeat in range(self.repeats):
                start = time.monotonic()
                for job in jobs if repeat % 2 == 0 else jobs[::-1]:
                    key = json.dumps([part, job.label, job.request])
                    wanted = min(self.repeats, job.repeats)
                    if done.get(key, 0) > repeat or repeat >= wanted or job.label in failed:
                        continue
                    worker = workers.get(job.worker)
                    if worker is None or job.fresh:
                        worker = Worker(job.worker, self.cores)
                        stack.callback(worker.close)
                        workers[job.worker] = worker
                    answer = worker.ask(job.request)
                    if job.fresh:
                        worker.close()
                    if answer is None:
                        failed.add(job.label)
                        print(f"{part} {job.label}: failed, see {job.worker}.log", flush=True)
                        continue
                    for name in ("seconds", "steady"):
                        if name in answer:
                            answer[name] *= job.scale
                    record = {
                        "part": part, "label": job.label, "request": job.request,
                        "scale": job.scale, "entry": job.entry, **answer,
                    }  # fmt: skip
                    self.append(record)
                    named = [str(v) for v in job.entry.values() if str(v) not in part]
                    name = " ".join([part, job.label, *named])
                    shown = answer.get("check", answer.get("points", answer.get("ratio", "")))
                    print(
                        f"{name}: {answer['seconds']:.3f} s ({repeat + 1}/{wanted}) {shown}",
                        flush=True,
                    )
                if repeat == 0 and self.repeats > 1 and time.monotonic() - start > 20:
                    left = (time.monotonic() - start) * (self.repeats - 1) / 60
                    print(f"{part}: at most {left:.0f} more minutes", flush=True)
        print(f"{part}: {(time.monotonic() - began) / 60:.1f} minutes", flush=True)


def available(worker: str) -> bool:
    """Whether a contestant can take part here."""
    if worker == "jax":
        return all(importlib.util.find_spec(name) is not None for name in ("jax", "optax"))
    if worker == "kernel":
        return any(map(shutil.which, ("g++", "clang++", "c++")))
    return True


def shrunk(job: Job) -> Job:
    """A job that takes seconds, to see that it runs."""
    request = dict(job.request)
    most = {"P1": 40, "P2": 200, "P3": 2, "P4": 40}.get(request["work"], 0)
    if "steps" in request:
        request["steps"] = min(request["steps"], most)
    if request["work"] == "quality":
        request["seconds"] = [1, 2]
    if "words" in request and request["words"][0] == "ncsn-train":
        request["words"] = [*request["words"], "trainer.steps=20"]
    if "words" in request and "-m" in request["words"]:
        request["words"] = [w.replace("range(16)", "range(2)") for w in request["words"]]
    return Job(job.label, request, job.scale, job.repeats, job.entry, job.fresh)


def weights(bench: Bench) -> str:
    """Of P3: a network trained by ``ncsn-train experiment=ncsn_2d``."""
    path = bench.path.parent / ("weights_quick.npz" if bench.quick else "weights.npz")
    if not path.exists():
        from ncsn_cli.models import EmbeddingMLP
        from ncsn_cli.runs.checkpoints import load_newest

        print("training P3's network", flush=True)
        run = path.parent / path.stem
        words = ["experiment=ncsn_2d", "plot=[]", "animation=[]", f"hydra.run.dir={run}"]
        words += ["trainer.steps=2000"] if bench.quick else []
        command = str(Path(sys.executable).parent / "ncsn-train")
        subprocess.run([command, *words], check=True, capture_output=True)
        _, tensors, _ = load_newest(run)
        names = EmbeddingMLP(dim=2, embedding=16, hidden=[128], activation="relu").state_dict()
        save(path, [tensors[f"network.{name}"].numpy() for name in names])
    return str(path)


def random_weights(width: int) -> str:
    """A network of another width, for the time alone: its score is near 0."""
    path = FOLDER / f"random_{width}.npz"
    stream = np.random.default_rng(0)
    shapes = [(16, 1), (16,), (16, 16), (16,), (width, 18), (width,), (2, width), (2,)]
    arrays = [stream.standard_normal(shape) for shape in shapes]
    save(path, [*arrays[:6], 1e-4 * width**-0.5 * arrays[6], 1e-4 * arrays[7]])
    return str(path)


def save(path: Path, arrays: list[Any]) -> None:
    """Arrays of a network in torch's order, as ``w0, b0, w1, ...``."""
    names = [f"{kind}{i}" for i in range(len(arrays) // 2) for kind in "wb"]
    values = {n: np.asarray(a, np.float32) for n, a in zip(names, arrays, strict=True)}
    np.savez(path, allow_pickle=False, **values)


def training_parts(part: str) -> list[Job]:
    """P1 and P2: who does not compile does a tenth of P2's steps."""
    work, share = (P1, 1) if part == "P1" else (P2, 10)
    part_of_it = {**work, "steps": work["steps"] // share}
    return [
        Job("notebook", part_of_it, share),
        Job("jax", work),
        Job("ours, plain", {**part_of_it, "overrides": ["trainer.compile=false"]}, share),
        Job("ours, compiled", {**work, "overrides": ["trainer.compile=true"]}),
    ]


def p3(bench: Bench) -> list[Job]:
    """A share of the steps at every one of the 100 levels."""
    work = {**P3, "weights": weights(bench)}
    shares = {
        "notebook": 100, "jax": 10, "kernel": 10, "kernel, tuned": 1, "ours, plain": 5,
        "ours, compiled": 1,
    }  # fmt: skip
    options = {**SAMPLING, "ours, plain": {}, "ours, compiled": SAMPLING["ours"]}
    return [
        Job(label, {**work, "steps": 1000 // share, **options[label]}, share)
        for label, share in shares.items()
    ]


def p4(bench: Bench) -> list[Job]:
    """16 seeds of P1: four are enough where they run one after the other in one process."""
    work = {**P1, "work": "P4"}
    quiet = ["experiment=mdsm_1d", "plot=[]", "animation=[]"]
    sweep = ["ncsn-train", "-m", "seed=range(16)", *quiet]
    jobs = [
        Job("notebook", {**work, "seeds": 2, "steps": 250}, 32),
        Job("jax, seeds in turn", {**work, "seeds": 2, "vmap": False}, 8),
        Job("jax, vmap over seeds", {**work, "seeds": 16, "vmap": True, "steps": 100}, 10),
        Job("ours, plain fits", {**work, "seeds": 4, "overrides": ["trainer.compile=false"]}, 4),
    ]
    plain = {"work": "command", "words": [*sweep, *bench.overrides], "warm": False}
    alone = {**plain, "words": [*plain["words"], "hydra/launcher=basic"]}
    compiled = {"work": "command", "words": [*plain["words"], "trainer.compile=true"]}
    return [
        *jobs,
        Job("command", plain),
        Job("command, one by one", alone, repeats=2),
        Job("command, compiled", compiled),
    ]


def p5(bench: Bench) -> list[Job]:
    """16 seeds of P2 with 3000 steps: one is enough where they run one after the other."""
    work = {**P2, "steps": 3000}
    words = ["ncsn-train", "-m", "seed=range(16)", "experiment=ncsn_2d", "trainer.steps=3000",
             "plot=[]", "animation=[]", *bench.overrides]  # fmt: skip
    plain = {"work": "command", "words": words, "warm": False}
    compiled = {"work": "command", "words": [*words, "trainer.compile=true"]}
    return [
        Job("notebook", work, 16),
        Job("jax, seeds in turn", work, 16),
        Job("command", plain),
        Job("command, compiled", compiled),
    ]


def commands(bench: Bench) -> list[Job]:
    """The commands themselves, from start to end."""
    trained = str(Path(weights(bench)).with_suffix(""))
    quiet = ["plot=[]", "animation=[]"]
    steps = "++sampler.steps_per_level=" + ("2" if bench.quick else "100")
    lines = [
        ["ncsn-train", "--help"],
        ["ncsn-train", "experiment=mdsm_1d", *quiet, *bench.overrides],
        ["ncsn-train", *quiet, *bench.overrides],
        ["ncsn-train", "experiment=ncsn_2d", *quiet, *bench.overrides],
        ["ncsn-sample", f"checkpoint={trained}", *quiet, steps],
    ]
    jobs = []
    for words in lines:
        shown = " ".join(word.replace(trained, "RUN") for word in words)
        request = {"work": "command", "words": words, "warm": False}
        jobs.append(Job("command", request, repeats=3, entry={"command": shown}))
    if available("jax"):
        for name, work in (("P1", P1), ("P2", P2)):
            words = ["python", str(Path(__file__).with_name("jax_peer.py")), json.dumps(work)]
            entry = {"command": f"python benchmarks/jax_peer.py {name}"}
            request = {"work": "command", "words": words, "warm": False}
            jobs.append(Job("command", request, 1, 3, entry))
    if bench.quick:  # not --help
        return jobs[1:]
    return jobs


def growth(bench: Bench) -> Iterator[tuple[str, list[Job]]]:
    """Each axis: one size doubled again and again, the others held."""
    trained = weights(bench)
    small = {**P3, "weights": trained, "levels": 20, "steps": 20}
    axes: list[tuple[str, dict[str, Any], str, list[int], list[str]]] = [
        ("P3", small, "particles", [1250 * 2**k for k in range(6)], list(SAMPLING)),
        ("P3", {**small, "steps": 10}, "levels", [25 * 2**k for k in range(5)], list(SAMPLING)),
        ("P3", small, "steps", [10 * 2**k for k in range(5)], list(SAMPLING)),
        ("P3", small, "width", [32 * 2**k for k in range(5)], list(SAMPLING)),
        ("P1", {**P1, "steps": 100}, "points", [512 * 2**k for k in range(5)], ["ours", "jax"]),
        ("P1", {**P1, "steps": 100}, "levels", [8 * 2**k for k in range(5)], ["ours", "jax"]),
        ("P1", {**P1, "steps": 100}, "width", [32 * 2**k for k in range(5)], ["ours", "jax"]),
        ("P2", P2, "steps", [1000 * 2**k for k in range(4)], ["ours", "jax"]),
        ("P2", {**P2, "steps": 2000}, "levels", [25 * 2**k for k in range(5)], ["ours", "jax"]),
        ("P2", {**P2, "steps": 2000}, "width", [32 * 2**k for k in range(5)], ["ours", "jax"]),
    ]
    for work, base, axis, sizes, labels in axes:
        jobs = []
        for size in sizes:
            for label in labels:
                request = {**base, axis: size}
                if work == "P3":
                    request |= SAMPLING[label]
                if work == "P3" and axis == "width":
                    del request["width"]
                    request["weights"] = random_weights(size)
                if work == "P3" and label == "notebook" and axis != "steps":
                    request["steps"] //= 5
                scale = base["steps"] / request["steps"] if axis != "steps" else 1
                entry = {"work": work, "axis": axis, "size": size}
                jobs.append(Job(label, request, scale, 3, entry))
        yield f"growth {work} {axis}", jobs


def memory(bench: Bench) -> list[Job]:
    """Peak memory of a fresh process that does one work once."""
    jobs = []
    p2 = {**P2, "steps": 1000, "overrides": ["trainer.compile=true"]}
    p3 = {**P3, **SAMPLING["ours"], "weights": weights(bench), "steps": 10}
    axes: list[tuple[str, dict[str, Any], str, list[int]]] = [
        ("P2", p2, "levels", [25, 100, 400]),
        ("P2", p2, "steps", [1000, 4000, 16_000]),
        ("P3", p3, "levels", [25, 100, 400]),
        ("P3", p3, "steps", [10, 40, 160]),
        ("P3", {**p3, "levels": 10, "steps": 2}, "particles", [10_000, 100_000, 1_000_000]),
        ("P1", {**P1, "steps": 50}, "levels", [16, 64, 256]),
    ]
    for work, base, axis, sizes in axes:
        for size in sizes:
            request = {**base, axis: size, "warm": False}
            entry = {"work": work, "axis": axis, "size": size}
            jobs.append(Job("ours", request, 1, 1, entry, fresh=True))
    return jobs


def quality(bench: Bench) -> Iterator[tuple[str, list[Job]]]:
    """Score error against seconds of training, sliced Wasserstein against those of sampling."""
    jobs = []
    loops = {
        "ours, plain": ["trainer.compile=false"], "ours, compiled": ["trainer.compile=true"],
        "notebook": [],
    }  # fmt: skip
    for name, options in (("default", []), ("ncsn_2d", ["experiment=ncsn_2d"])):
        for loop, own in loops.items():
            limits = [1, 3, 10, 30, 60]
            if loop == "ours, compiled":  # before, it does nothing but compile
                limits = [30, 60]
            request = {"work": "quality", "options": [*options, *own, *bench.overrides],
                       "loop": loop, "seconds": limits, "warm": False}  # fmt: skip
            jobs.append(Job("ours", request, 1, 1, {"preset": name, "loop": loop}))
    yield "quality of training", jobs
    jobs = []
    names = ["annealed_langevin", "predictor_corrector", "reverse_diffusion",
             "probability_flow, heun", "probability_flow"]  # fmt: skip
    for evaluations in [10, 30] if bench.quick else [10, 30, 100, 300, 1000]:
        for sampler in names:
            for seed in range(3):
                request = {
                    "work": "sliced_wasserstein", "dataset": "two_modes_2d", "sampler": sampler,
                    "evaluations": evaluations, "seed": seed, "folder": str(FOLDER),
                    "warm": False,
                }  # fmt: skip
                entry = {"sampler": sampler, "evaluations": evaluations}
                jobs.append(Job("ours", request, 1, 1, entry))
    yield "quality of sampling", jobs


def instruction_set() -> str:
    """The widest vectors, in words."""
    with contextlib.suppress(OSError):
        flags = Path("/proc/cpuinfo").read_text().split()
        for flag, name in (("avx512f", "AVX-512"), ("avx2", "AVX2")):
            if flag in flags:
                return f"{platform.machine()} with {name}"
    return platform.machine()


def describe(bench: Bench) -> None:
    """Append what the machine is and which versions ran."""
    names = ["torch", "jax", "optax", "numpy"]
    found = {name: version(name) for name in names if importlib.util.find_spec(name)}
    record = {"part": "machine", "label": "", "request": {}, "cores": bench.cores,
              "instructions": instruction_set(), "python": platform.python_version(),
              "versions": found, "repeats": bench.repeats, "overrides": bench.overrides,
              "load": os.getloadavg()[0]}  # fmt: skip
    bench.append(record)


def main() -> None:
    """Run the parts that are asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("parts", nargs="*", help=f"{' '.join(PARTS)} report")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--cores", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--set", nargs="*", default=[], dest="overrides")
    chosen = parser.parse_args()
    if chosen.parts[:1] == ["worker"]:
        contestants.serve(chosen.parts[1], chosen.cores)
        return
    parts = chosen.parts or [*PARTS, "report"]
    if unknown := set(parts) - {*PARTS, "report"}:
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / ("quick.jsonl" if chosen.quick else "speed.jsonl")
    if chosen.fresh:
        path.unlink(missing_ok=True)
    repeats = 1 if chosen.quick else chosen.repeats
    bench = Bench(path, repeats, chosen.cores, chosen.quick, chosen.overrides)
    if parts != ["report"]:
        shutil.rmtree(FOLDER / "compiled", ignore_errors=True)
        describe(bench)
        minutes = sum(PARTS.get(part, 0) for part in parts)
        print(f"about {minutes:g} minutes on two quiet cores, less what is measured already")
    makers = {"P3": p3, "P4": p4, "P5": p5, "commands": commands, "memory": memory}
    for part in parts:
        if part in ("P1", "P2"):
            bench.measure(part, training_parts(part))
        elif part in makers:
            bench.measure(part, makers[part](bench))
        elif part in ("growth", "quality"):
            for name, jobs in (growth if part == "growth" else quality)(bench):
                bench.measure(name, jobs)
        else:
            from speed_report import write

            write(bench.records(), FOLDER if bench.quick else contestants.HERE.parent / "docs")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on")
