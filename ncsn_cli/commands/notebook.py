"""The commands as functions, for notebooks and scripts: the same checks and the same files."""

from __future__ import annotations

import importlib
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobRuntime
from hydra.errors import HydraException
from hydra.version import VersionBase
from numpy.typing import ArrayLike, NDArray
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor

from ncsn_cli.commands.arrays import A, Mixture, on_arrays
from ncsn_cli.commands.before import FolderBefore
from ncsn_cli.commands.build import build_from_checkpoint
from ncsn_cli.commands.cli import config_dir, leave_nothing, log_into, recording_failures
from ncsn_cli.commands.config import MeasureSettings, read_config, settings
from ncsn_cli.commands.failures import code_of, explain
from ncsn_cli.commands.job import output_folder, why_unknown
from ncsn_cli.commands.measure import build, refuse_unused
from ncsn_cli.commands.mistyped import refuse_mistyped
from ncsn_cli.commands.names import for_hydra, own_modules
from ncsn_cli.commands.old_names import with_new_names
from ncsn_cli.commands.score import empirical_score, load_network
from ncsn_cli.commands.shorthand import expand, latest
from ncsn_cli.core.dataset import Dataset
from ncsn_cli.core.errors import (
    BadSamplesError,
    ConfigError,
    MissingInputError,
    NcsnError,
    RefusedStart,
    one_line,
)
from ncsn_cli.evaluation.floors import Floors
from ncsn_cli.evaluation.samples import evaluate_samples
from ncsn_cli.runs.checkpoints import load_newest
from ncsn_cli.runs.files import read_json, read_npz
from ncsn_cli.runs.folder import SAMPLES, release
from ncsn_cli.runs.records import read_yaml
from ncsn_cli.runs.samples import Samples, as_points, read_samples, samples_file
from ncsn_cli.training.history import COLUMNS, read_history

log = logging.getLogger(__name__)


class Run:
    """A run's folder, read on demand.

    Args:
        folder: The folder of a run of ``ncsn-train``, ``ncsn-sample`` or ``ncsn-measure``.
        plugins: Your own modules whose classes the run may name.

    Raises:
        MissingInputError: If ``folder`` holds no run.
    """

    def __init__(self, folder: str | os.PathLike[str], plugins: tuple[str, ...] = ()) -> None:
        self.folder = Path(os.path.abspath(os.path.expanduser(folder)))
        self.plugins = plugins
        if not (self.folder / "run.json").is_file():
            raise MissingInputError(f"{self.folder}: there is no run in this folder")

    def __repr__(self) -> str:
        """Return the folder and the state."""
        return f"Run({str(self.folder)!r}: {self.state})"

    @property
    def state(self) -> str:
        """``running``, ``done``, ``failed``, ``interrupted`` or ``diverged``."""
        return str(read_json(self.folder / "status.json").get("state", "unknown"))

    @cached_property
    def config(self) -> dict[str, Any]:
        """The effective configuration, from ``config.yaml``."""
        return with_new_names(read_yaml(self.folder / "config.yaml", {}))

    @property
    def metrics(self) -> dict[str, Any]:
        """The numbers of ``metrics.json``; {} until the run has them."""
        return read_json(self.folder / "metrics.json")

    @cached_property
    def history(self) -> dict[str, NDArray[np.float64]]:
        """The columns of a training's ``history.csv``, by name; nan where a row has no value."""
        rows = read_history(self._file("history.csv"))
        columns = dict.fromkeys([*COLUMNS, *(name for row in rows for name in row)])
        return {n: np.array([row.get(n) for row in rows], dtype=float) for n in columns}

    @cached_property
    def samples(self) -> NDArray[np.float32]:
        """The samples of ``ncsn-sample`` (N, D), in data units."""
        return read_npz(self._file(SAMPLES))["samples"]

    def score(self, x: A, sigma: ArrayLike | Tensor) -> A:
        """Return the score of the run at points ``x`` (..., D), as the kind of array that x is.

        It is the trained network's, with averaged weights where there are any, or the one that a
        run of ``ncsn-sample`` followed. ``sigma`` is one level, or one for each point (...).
        """
        with _one_error():
            function, dim, dtype = self._score
        return on_arrays(function, x, sigma, dim, dtype)

    @cached_property
    def _score(self) -> tuple[Callable[[Tensor, Tensor], Tensor], int, torch.dtype | None]:
        config = self.config
        kind = config.get("score", "checkpoint" if "trainer" in config else None)
        if kind is None:
            raise ConfigError(f"{self.folder}: this run has no score")
        law: Dataset = build_from_checkpoint(config["dataset"], "dataset", [*self.plugins])
        if kind == "exact":
            return law.score, law.dim, None
        if kind == "empirical":
            return empirical_score(law, torch.zeros(law.dim))[0], law.dim, None
        place = self.folder if "trainer" in config else Path(config["checkpoint"])
        _, tensors, record = load_newest(place)
        trained = with_new_names(record["config"])["model"]
        network = load_network(trained, None, tensors, law.dim, [*self.plugins])
        return lambda x, s: network(x.cpu(), s.cpu()), law.dim, torch.float32

    def _file(self, name: str) -> Path:
        if not (self.folder / name).is_file():
            raise MissingInputError(f"{self.folder}: this run has no {name}")
        return self.folder / name


def load_run(folder: str | os.PathLike[str], plugins: tuple[str, ...] = ()) -> Run:
    """Return the run in ``folder``, or the newest training for ``latest``; see ``Run``."""
    if folder == "latest":
        folder = latest("sample", "checkpoint", "outputs")
    return Run(folder, plugins)


def train(
    *overrides: str,
    folder: str | os.PathLike[str] | None = None,
    config_dir: str | os.PathLike[str] | None = None,
    **options: Any,  # noqa: ANN401
) -> Run:
    """Train as ``ncsn-train`` does, in this process, and return the run.

    Args:
        overrides: Words of the command line, such as ``"experiment=mdsm_1d"``.
        folder: Where the run writes; None is a new folder below ``outputs``.
        config_dir: A folder of your own options, as the flag ``--config-dir``.
        options: More of them by keyword: ``seed=3``, ``optimizer={"lr": .01}``,
            ``dataset=Mixture(...)``.

    Raises:
        NcsnError: What the command would say, such as ``ConfigError`` for a wrong key.
        KeyboardInterrupt: After the run was saved, if it was interrupted.
    """
    return _run("train", [*overrides, *_words(options)], folder, config_dir)


def sample(
    source: Run | str | os.PathLike[str] | None = None,
    *overrides: str,
    folder: str | os.PathLike[str] | None = None,
    config_dir: str | os.PathLike[str] | None = None,
    **options: Any,  # noqa: ANN401
) -> Run:
    """Sample as ``ncsn-sample`` does, in this process, and return the run.

    Args:
        source: A training run, its folder, or a checkpoint. None for ``score="exact"``.
        overrides: Words of the command line.
        folder: See ``train``.
        config_dir: See ``train``.
        options: See ``train``. A dictionary changes values of the checkpoint's options, such as
            ``sampler={"denoise": True}``.

    Raises:
        NcsnError: See ``train``.
        KeyboardInterrupt: See ``train``.
    """
    words = [*overrides, *_words(options, change="++")]
    if isinstance(source, Run) and source.plugins:
        words.append(_word("plugins", [*source.plugins]))
    if isinstance(source, str) and "=" in source and not os.path.exists(source):
        words.insert(0, source)
    elif source is not None:
        place = source.folder if isinstance(source, Run) else source
        words.insert(0, _word("checkpoint", os.fspath(place)))
    return _run("sample", words, folder, config_dir)


def measure(
    samples: ArrayLike | Tensor | Run | str | os.PathLike[str],
    truth: Mixture | str,
    sigma: float = 0.0,
    *overrides: str,
    config_dir: str | os.PathLike[str] | None = None,
    **options: Any,  # noqa: ANN401
) -> dict[str, dict[str, Any] | None]:
    """Measure ``samples`` as ``ncsn-measure`` does, without writing files.

    Args:
        samples: Points (N, D), in data units; or the run that made them, or a file.
        truth: The distribution, or the name of an option of ``dataset``.
        sigma: The level to measure against, data units; 0 is the data itself.
        overrides: Words of the command line, such as ``"dataset.std=.2"``.
        config_dir: See ``train``.
        options: See ``train``, such as ``metric=["mmd", "moments"]`` or ``seed=1``.

    Returns:
        For each metric ``value``, ``floor`` (its mean over sets of as many exact draws),
        ``floor_quantiles`` (99 % of these sets lie between them) and ``ratio`` = value/floor,
        which is about 1 for perfect samples; also what the metric adds, such as mode weights.
        None if the metric needs more of the truth than is known.

    Raises:
        NcsnError: See ``train``.
    """
    words = [*overrides, *_words({"dataset": truth}), *_words({"sigma": sigma, **options})]
    refuse_mistyped("measure", words)
    refuse_unused(words)
    words = _with_folder_of_options(words, config_dir)
    with _borrowed_process("measure"), torch.no_grad():
        with _refusals("measure"):
            config = read_config(hydra.compose("measure", words))
        run: MeasureSettings = settings(MeasureSettings, config)
        job = build(run, config, partial(_points_of, samples, run.key))
        law = job.denoised or job.truth
        floors = Floors()
        floors.prepare(job.metrics.values(), [(law, run.sigma)], len(job.samples))
        found = evaluate_samples(job.samples, law, run.sigma, job.metrics, floors, run.seed)
        if unknown := [name for name, entry in found.items() if entry is None]:
            log.warning("%s", why_unknown(unknown))
        return found


def _points_of(source: Any, key: str | None, dim: int) -> Samples:  # noqa: ANN401
    """Return the samples that ``measure`` was given, which are points in D = ``dim``."""
    if isinstance(source, Run | str | os.PathLike):
        place = source.folder if isinstance(source, Run) else source
        return read_samples(samples_file(os.fspath(place)), key, dim)
    try:
        array = np.asarray(source.detach().cpu() if isinstance(source, Tensor) else source)
    except (TypeError, ValueError) as error:
        raise BadSamplesError(f"samples: they are no array ({one_line(str(error))})") from error
    return Samples(as_points("samples", array, dim))


def _run(
    name: str,
    words: list[str],
    folder: str | os.PathLike[str] | None,
    config_dir: str | os.PathLike[str] | None,
) -> Run:
    """Run ``ncsn-name`` with the overrides ``words`` in this process; return its run."""
    if flags := [word for word in words if word.startswith("-")]:
        raise ConfigError(f"{flags[0]}: flags are for the command line")
    if sweep := [word for word in words if word.startswith(("hparams_search=", "hydra.mode="))]:
        raise ConfigError(f"{sweep[0]}: one call is one run; call ncsn-{name} for a sweep")
    refuse_mistyped(name, words)
    words = _with_folder_of_options(expand(name, words), config_dir)
    if words[:1] == ["-m"]:
        raise ConfigError(f"{words[1]}: one call is one run; call ncsn-{name} for a sweep")
    if folder is not None:
        words.append(_word("hydra.run.dir", os.path.expanduser(folder)))
    task = getattr(importlib.import_module(f"ncsn_cli.commands.{name}"), name)
    folders = []

    def job(cfg: DictConfig) -> None:
        folders.append(output_folder())
        with log_into(folders[0] / f"{name}.log"):
            recording_failures(name, task, cfg)

    with _borrowed_process(name):
        main = GlobalHydra.instance().hydra
        assert main is not None
        try:
            with _refusals(name):
                main.run(name, job, words, with_log_configuration=False)
        except BaseException as error:
            leave_nothing(code_of(name, error, True))
            raise
        finally:
            FolderBefore.current = None
            for folder in folders:
                release(folder)
    own = own_modules(Run(folders[0]).config)  # their classes were named in this process
    return Run(folders[0], tuple(own))


_one_at_a_time = threading.RLock()  # Hydra's state and the environment belong to the process


@contextmanager
def _borrowed_process(name: str) -> Iterator[None]:
    """Start Hydra for ``ncsn-name``; at the end, give back what a command changes in its process.

    These are Hydra's state, torch's threads, the environment, the path for imports and the level
    of this package's log. Calls from several threads wait for each other.
    """
    with _one_at_a_time:
        singletons, environment = dict(Singleton._instances), dict(os.environ)
        logger, threads = logging.getLogger("ncsn_cli"), torch.get_num_threads()
        level, path = logger.level, [*sys.path]
        for kind in (GlobalHydra, HydraConfig, JobRuntime, VersionBase):
            Singleton._instances.pop(kind, None)
        try:
            logger.setLevel(logging.INFO)
            torch.set_num_threads(1)  # as in the commands: sums depend on the number
            sys.path.append(os.getcwd())
            with (
                hydra.initialize_config_dir(str(config_dir()), name, version_base="1.3"),
                _one_error(),
            ):
                yield
        finally:
            Singleton._instances.clear()
            Singleton._instances.update(singletons)
            sys.path[:] = path
            torch.set_num_threads(threads)
            logger.setLevel(level)
            for key in os.environ.keys() - environment.keys():
                del os.environ[key]
            os.environ.update(environment)


@contextmanager
def _one_error() -> Iterator[None]:
    """Raise an error that a user can fix without those that it came from: the log has them."""
    try:
        yield
    except NcsnError as error:
        raise error from None


@contextmanager
def _refusals(name: str) -> Iterator[None]:
    """Raise Hydra's errors as ``ConfigError``, with the text of the command ``ncsn-name``."""
    try:
        yield
    except RefusedStart as refused:
        assert refused.__cause__ is not None
        raise refused.__cause__ from None
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise ConfigError("\n".join(explain(name, error, True)[0])) from error


def _words(options: Mapping[str, Any], change: str = "", inside: str = "") -> list[str]:
    """Return ``options`` as overrides; values inside of a group get the prefix ``change``."""
    words: list[str] = []
    for name, value in options.items():
        key = inside + name
        if isinstance(value, Mixture):
            words += [f"{key}=mixture", *_words(value.settings, "", f"{key}.")]
        elif isinstance(value, Mapping):
            words += _words(value, change, f"{key}.")
        else:
            words.append((change if "." in key else "") + _word(key, value))
    return words


def _word(key: str, value: Any) -> str:  # noqa: ANN401
    """Return ``key=value`` as Hydra reads it."""
    if isinstance(value, np.ndarray | np.generic | Tensor):
        value = value.tolist()
    if isinstance(value, tuple):
        value = [*value]
    return for_hydra(key, os.fspath(value) if isinstance(value, Path) else value)


def _with_folder_of_options(words: list[str], folder: str | os.PathLike[str] | None) -> list[str]:
    """Return ``words`` for Hydra, with a folder of the user's own options."""
    if folder is None:
        return words
    place = os.path.abspath(os.path.expanduser(folder))
    if not os.path.isdir(place):
        raise MissingInputError(f"config_dir: there is no folder {place}")
    return [*words, _word("hydra.searchpath", [f"file://{place}", "moved://"])]
