"""Malformed configurations are refused in three lines that name the key; others run or diverge."""

import functools
import random
import tempfile
from collections import Counter

import hydra
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf, flag_override

from ncsn_cli.commands.cli import config_dir
from ncsn_cli.commands.sample import sample
from ncsn_cli.commands.train import train
from ncsn_cli.core import expectation
from ncsn_cli.core.errors import ConfigError, DivergedError
from ncsn_cli.datasets import checkerboard, mixture
from ncsn_cli.evaluation import floors, log_density, network
from ncsn_cli.metrics import recovered_density
from ncsn_cli.runs.records import flatten
from tests.helpers.commands import read, run

pytestmark = pytest.mark.slow  # minutes

# What each value of the configurations is, by the last part of its key: one wrong for all.
KINDS = {
    "count": "steps num_levels steps_per_level corrector_steps log_every eval_every batch_size"
    " checkpoint_every keep_last snapshots threads num_samples max_points num_points num_steps"
    " num_directions features embedding side num_components num_modes reference"
    " timesteps_per_level",
    "index": "seed trajectories",
    "length": "sigma_max sigma_min rho step_size snr lr radius turns spacing length max_seconds"
    " grad_clip sigma_data bandwidth eta log_std",
    "width": "sigma std regularization weight_decay momentum eps ema_decay",
    "number": "weight_power log_mean mean low high",
    "flag": "denoise conditional variance_reduced tensorboard trajectory_metrics log_density"
    " budget nesterov compile learn_weights learn_means learn_stds"
    " quasi_random fit_levels",
    "word": "levels noise directions solver activation lr_decay score device",
    "list": "weights means stds covariances hidden betas",
    "path": "checkpoint resume objective",
    "modules": "plugins",
}
KIND_OF = {name: kind for kind, names in KINDS.items() for name in names.split()}
NO_NUMBER = [
    "abc",
    "nan",
    "inf",
    "-inf",
    "1e999",
    "true",
    "[[]]",
    "{a: 1}",
    "ünï",
    "''",
    300 * "x",
]
HUGE = ["1e20", str(10**20), str(2**63), str(2**31 * 10), 400 * "9"]
WRONG = {
    "count": [*NO_NUMBER, *HUGE, "0", "-3", "2.5", "[3]", "-1e20", str(-(2**63))],
    "index": [*NO_NUMBER, "-1", "1e20", "0.5", "[3]", str(-(10**20))],
    "length": [*NO_NUMBER, 400 * "9", "0", "-1", "-1e-300", "[1]"],
    "width": [*NO_NUMBER, 400 * "9", "-1", "-1e-300", "[1]"],
    "number": [*NO_NUMBER, 400 * "9", "[1]", "null"],
    "flag": ["maybe", "2", "0.5", "null", "[]", "{a: 1}", "nan", "ünï", "''"],
    "word": ["nosuch", "3", "null", "[]", "{a: 1}", "true", "nan", "ünï", "''", 5000 * "x"],
    "list": [
        "abc", "[abc]", "[[[[[1]]]]]", "[nan]", "[inf]", "{a: 1}", "[[1],[1,2]]", "[1,[2]]",
        "[null]", "[true]", "true", "[{a: 1}]", f"[{','.join(2000 * ['a'])}]",
    ],
    "path": ["3", "[]", "{a: 1}", "true", "nan"],
    "modules": ["nosuch", "[nosuch]", "[..]", "['']", "{a: 1}", "[1]", "[[]]", "null", "true"],
}  # fmt: skip
ANYWHERE = [
    "{key}=???", "{key}=${{nosuch}}", "{key}=${{nosuch:1}}", "{key}=${{{key}}}", "{key}x=1",
    "{key}.deeper=1", "{key}=[1", "{key}='a", "{key}={{a", "{key}=a]", "{key}=1,2", "{key}",
    "{key}=range(3)", "{key}=choice(1,2)", "++{key}x=1", "~{key}x",
]  # fmt: skip

BASES = [  # command, and what its configuration is made of
    *(("train", [f"experiment={name}"]) for name in ("mdsm_1d", "rosa_2d", "edm_karras_2d")),
    ("train", ["dataset=grid_2d", "loss=sliced", "model=embedding_mlp", "sampler=langevin"]),
    ("train", ["dataset=circle_2d", "model=fourier_mlp", "optimizer=sgd", "init=uniform"]),
    ("train", ["dataset=ring_2d", "schedule=from_data", "model=energy_mlp", "init=data"]),
    ("train", ["dataset=moons_2d", "model=ncsnv2_mlp", "sampler=predictor_corrector"]),
    *(("sample", ["score=exact", f"experiment={e}"]) for e in ("mdsm_1d", "langevin_2d")),
    ("sample", ["score=exact", "dataset=spiral_2d", "schedule=karras", "sampler=preset/heun",
                "metric=[kl,mmd,energy_distance,sliced_wasserstein]", "init=normal"]),
    ("sample", ["score=exact", "dataset=checkerboard_2d", "schedule=linear", "init=data",
                "sampler=consistent_annealed", "metric=[wasserstein,score_error]"]),
]  # fmt: skip
QUICK = {  # should one be run all the same
    "train": ["trainer.steps=2", "dataset.num_samples=50", "plot=[]"],
    "sample": ["num_samples=9", "dataset.num_samples=50", "plot=[]"],
}
UNUSED = {"train": "metric", "sample": "loss model optimizer trainer"}


def leaves(config):
    """Keys of a composed configuration."""
    flat = flatten(OmegaConf.to_container(config, resolve=True))
    return [key for key in flat if key.split(".")[-1][0] != "_" and not key.startswith("paths")]


def malformed_values():
    """Each value of each base, wrong in every way: command, arguments, what must be named."""
    for command, base in BASES:
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            config = compose(command, base)
        for key in leaves(config):
            name = key.split(".")[-1]
            if key.split(".")[0] in UNUSED[command].split():
                continue
            for wrong in WRONG[KIND_OF[name]]:
                yield command, [*base, *QUICK[command], f"{key}={wrong}"], key
            for wrong in ANYWHERE:
                yield command, [*base, *QUICK[command], wrong.format(key=key)], key


def both(*words):
    return [(command, [word], word.partition("=")[0].strip("+~ ")) for word in words
            for command in ("train", "sample")]  # fmt: skip


BY_HAND = [  # command, arguments, what must be named
    *both(
        "dataset", "trainer.steps==5", "dataset={a: 1}", "dataset=two_modes_1d,ring_2d",
        "dataset@x=ring_2d", "+dataset=ring_2d", "schedule=Geometric", "model=mlp=3", "plot=3",
        "seed=" + 5000 * "9", "plot=[nosuch]", "plot=[[score]]", "animation=nosuch", "nosuch=1",
        "+nosuch=1", "dataset=ünï", "ünï=1", "seed=${oc.env:NOSUCH}", "seed=${hydra:nosuch}",
        "seed=${seed}", "seed=int(abc)", "seed=str(", "seed=shuffle(3)", "seed=a:b:", "seed=0x10",
        "@=1", "a@b@c=1", "a:b=1", "trainer..steps=1", "trainer[steps]=0", "$x=1",
        "hydra.nosuch=1",
         "hydra/launcher=nosuch", "hydra/sweeper=nosuch", "paths=nosuch",
        "paths.outputs=???", "paths.outputs=3", "paths.outputs=[]", "paths.outputs=null",
        "++paths.nosuch=1", "experiment=nosuch",  "hparams_search=nosuch",
        "experiment=mdsm_1d,rosa_2d", "++a.b.c=1", "~nosuch", "~seed", "~dataset=nosuch",
        "device=cuda:99", "device=cpu:0", "device=CPU", "++plot=3", "++metric=3", "++plot.x=3",
        "seed=nan", "seed=1e400",
    ),
    *(("train", [word], word.partition("=")[0].strip("+~")) for word in (
        "~dataset", "~trainer",
        "trainer._target_=3", "trainer._target_=nosuch.Thing", "dataset._target_=os.system",
        "trainer._target_=ncsn_cli.datasets.Nothing", "++dataset._recursive_=maybe",
        "++model.dim=3", "++dataset.dim=3", "dataset.means=[]", "dataset.weights=[]",
        "dataset.weights=[.1,.2]", "dataset.weights=[-1,2]", "dataset.stds=[1,2,3]",
        "dataset.covariances=[[[1]]]", "schedule.num_levels=1", "schedule.sigma_min=1e300",
        "model.hidden=[0]", "model.hidden=[-1]", "model.hidden=[1e3]",
        "model.hidden=[10000000000]",
        "model.hidden=[]", "optimizer._target_=torch.optim.Nothing", "optimizer.betas=[1.5,2]",
        "optimizer._target_=builtins.dict", "optimizer.betas=[.9]", "metric=[moments]",
        "trainer=null", "loss=null",
    )),
    *(("sample", ["score=exact", "dataset=two_modes_1d", "sampler=langevin", word],
       word.lstrip("+")[:6])
      for word in ("++sampler=3", "++dataset=[1]", "++paths=3", "num_samples=0", "metric=3",
                   "metric={a: 1}", "++metric.moments=3")),
    *(("train", ["-m", word], word.partition("=")[0]) for word in (
        "trainer.stps=1,2", "dataset=nosuch,ring_2d", "seed=range(", "seed=range(1,2,0)",
        "seed=1,", "hydra/sweeper=nosuch", "seed=tag(1", "seed=[1,2",
    )),
    *((command, ["--config-dir", "options", f"trainer={name}"], "trainer")
      for command in ("train", "sample") for name in ("binary", "latin", "broken", "tabs",
      "bomb")),
    *(("train", ["--config-dir", "options", f"trainer={name}"], "trainer")
      for name in ("empty", "list", "text", "number", "duplicate", "typo")),
    *(("train", ["--config-dir", "options/trainer", "--config-name", name], name)
      for name in ("binary", "latin", "list", "broken", "tabs", "nosuch")),
    *((command, [flag, "nosuch"], "nosuch") for command in ("train", "sample")
      for flag in ("--config-dir", "--config-name", "--config-path")),
    ("train", ["--experimental-rerun", "nosuch"], "--experimental-rerun"),
    ("compare", [".", "--sort=nosuch", "--nosuch"], "--nosuch"),
    ("compare", [], "FOLDER"),
    ("compare", ["nowhere"], "nowhere"),
    ("compare", ["options"], "options"),
    ("compare", ["options/trainer/binary.yaml"], "binary.yaml"),
    ("compare", ["ünï"], "ünï"),
    ("compare", [""], ""),
    ("compare", [300 * "x"], 100 * "x"),
    ("train", ["-m", "seed=0,1", "hydra.sweep.dir=???"], "sweep.dir"),
    ("train", ["hydra.run.dir=???"], "run.dir"),
]  # fmt: skip
FILES = {
    "binary": b"\x00\x01\xff\xfe", "latin": "steps: ä".encode("latin-1"), "broken": b"steps: [1",
    "tabs": b"steps:\n\t- 1", "empty": b"", "list": b"- 1\n- 2\n", "text": b"just text\n",
    "number": b"3\n", "duplicate": b"steps: 1\nsteps: 2\n", "typo": b"stps: 1\n",
    "bomb": b"a: &a [1]\nb: *c\n",
}  # fmt: skip


def assert_refused(result, named, folder):
    lines = result.stderr.strip().splitlines()
    if lines and lines[0].startswith("usage:"):  # argparse answers in its own way
        lines = lines[-1:]
    assert result.returncode in (2, 66), result.stderr
    assert 1 <= len(lines) <= 3, result.stderr
    assert named in result.stderr
    assert "Traceback" not in result.stderr
    left = [path for path in folder.rglob("*") if path.is_file()]
    left = [p for p in left if ".hydra" not in p.parts and "options" not in p.parts]
    assert {path.name for path in left} <= {
        "train.log", "sample.log", "status.json", "multirun.yaml",  # the last is Hydra's own
    }  # fmt: skip
    assert len({path.parent for path in left}) <= 1
    assert all(read(p)["state"] == "failed" for p in left if p.suffix == ".json")


def test_malformed_configurations_are_refused(trials, forked, tmp_path):
    number = trials("D1", 600, 20)
    values = random.Random(0).sample(list(malformed_values()), number)
    by_hand = BY_HAND if number > len(BY_HAND) else BY_HAND[:: len(BY_HAND) // 15]
    cases = [*by_hand, *values][:number]
    for i, (command, arguments, named) in enumerate(cases):
        folder = tmp_path / str(i)
        (folder / "options" / "trainer").mkdir(parents=True)
        for name, content in FILES.items():
            (folder / "options" / "trainer" / f"{name}.yaml").write_bytes(content)
        if i % 10 == 0:
            arguments = [word.replace("\0", "") for word in arguments]
            result = run(f"ncsn-{command}", *arguments, folder=folder)
        else:
            result = forked.call(command, arguments, folder)
        assert_refused(result, named, folder)


EDGES = st.sampled_from([1e-30, 1e-9, 1e-3, 1e3, 1e9, 1e30, 0.0, -1.0])
LENGTHS = st.one_of(*[st.floats(0.05, 5).map(lambda v: round(v, 3))] * 9, EDGES)


def mixtures():
    """Of one to three modes, in one to three dimensions; some do not fit together."""
    sizes = st.tuples(st.integers(1, 3), st.integers(1, 3))
    return sizes.flatmap(lambda size: st.fixed_dictionaries({
        "weights": st.sampled_from([[1 / size[0]] * size[0]] * 9 + [[0.5, 0.4]]),
        "means": lists(lists(LENGTHS, size[1]), size[0]),
        **{"stds": st.none(), "covariances": lists(lists(lists(LENGTHS, size[1]), size[1]),
                                                   size[0])},
    }) | st.fixed_dictionaries({
        "weights": st.just([1 / size[0]] * size[0]),
        "means": lists(lists(LENGTHS, size[1]), size[0]),
        "stds": LENGTHS | lists(LENGTHS, size[0]) | lists(lists(LENGTHS, size[1]), size[0]),
    }))  # fmt: skip


def lists(elements, size):
    return st.lists(elements, min_size=size, max_size=size)


VALUES = {  # by the last part of the key; others stay as they are
    **dict.fromkeys([*KINDS["length"].split(), "sigma", "std"], LENGTHS),
    **dict.fromkeys(["steps_per_level", "corrector_steps", "batch_size", "eval_every",
    "num_steps"],
                    st.integers(1, 3)),
    **dict.fromkeys(["max_points", "num_points", "num_directions", "features", "embedding"],
                    st.integers(1, 40)),
    "hidden": st.lists(st.integers(1, 64), max_size=3), "num_levels": st.integers(2,
    50) | st.just(1),
    "steps": st.integers(1, 2), "side": st.integers(1, 4), "num_modes": st.integers(1, 8),
    "num_components": st.integers(1, 8), "weight_power": st.floats(-3, 3), "high": LENGTHS,
    "log_mean": st.floats(-3, 3), "log_std": LENGTHS, "reference": st.integers(1, 40),
    "regularization": LENGTHS, "denoise": st.booleans(), "low": LENGTHS, "mean": LENGTHS,
    "levels": st.sampled_from(["all", "random", "continuous", "lognormal"]),
    "conditional": st.booleans(),
    "activation": st.sampled_from(["relu", "softplus", "silu", "tanh"]),
    "noise": st.sampled_from(["fresh", "fresh", "fixed"]), "ema_decay": st.none() | st.floats(0,
    1),
    "num_samples": st.integers(1, 40), "lr_decay": st.sampled_from(["none", "cosine"]),
    "max_seconds": st.none(), "grad_clip": st.none() | LENGTHS, "bandwidth": st.none() | LENGTHS,
    "trajectories": st.integers(0, 5), "log_density": st.booleans(), "budget": st.booleans(),
    "score": st.sampled_from(["exact", "empirical"]), "trajectory_metrics": st.booleans(),
    "quasi_random": st.booleans(), "fit_levels": st.booleans(),
}  # fmt: skip


WORK = {"num_levels", "steps", "steps_per_level", "num_steps", "num_samples"}  # kept small


@functools.cache
def composed(command):
    return OmegaConf.to_container(compose(command), resolve=True)


@functools.cache
def names_of(group):
    return sorted(path.stem for path in config_dir().glob(f"{group}/*.yaml"))


@functools.cache
def option(group, name):
    several = group in ("metric", "plot", "animation")
    config = compose("sample", [f"{group}=[{name}]" if several else f"{group}={name}"])
    return OmegaConf.to_container(config, resolve=True)[group]


@st.composite
def configurations(draw, command):
    """A configuration of ``command``, drawn from all options, and where it is written."""
    config = dict(composed(command))
    groups = ["dataset", "schedule", "loss", "model", "optimizer", "trainer", "sampler", "init"]
    for group in groups:
        names = names_of(group)
        config[group] = dict(option(group, draw(st.sampled_from(names))))
    several = [("plot", 1)] if command == "train" else [("plot", 1), ("metric", 2)]
    for group, most in several:
        names = names_of(group)
        chosen = draw(st.just([]) | st.lists(st.sampled_from(names), max_size=most))
        config[group] = {name: dict(option(group, name)[name]) for name in chosen}
    config["score"] = "exact"
    is_wild = draw(st.booleans())
    places = [config, *(config[g] for g in groups), *config.get("metric", {}).values()]
    for place in places:
        for key in place.keys() & VALUES.keys():
            if key in WORK or is_wild:
                usual = st.nothing() if key in WORK else st.just(place[key])
                place[key] = draw(usual | VALUES[key])
    if config["dataset"]["_target_"].endswith("GaussianMixture") and draw(st.booleans()):
        config["dataset"] |= draw(mixtures())
    config["num_samples"], config["trainer"]["steps"] = (
        draw(st.integers(1, 30)),
        draw(VALUES["steps"]),
    )
    config["dataset"]["num_samples"] = draw(st.none() | st.integers(1, 40))
    if command == "train":
        for key in ("checkpoint", "score", "num_samples"):
            config.pop(key, None)
    return config


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("command", [train, sample], ids=["train", "sample"])
def test_a_configuration_runs_or_is_refused(
    command, trials, record_property, monkeypatch, tmp_path
):
    number = trials("D2", 1000, 5)
    for module, name, value in [
        (network, "_POINTS_PER_LEVEL", (100, 100)), (log_density, "_FLOW_STEPS", 2),
        (network, "_FEWEST_POINTS", 50), (network, "_FEWEST_RECOVERED", 1000),
        (network, "_MOST_RECOVERED", 1000), (network, "_MOST_INFORMATIONS", 4),
        (mixture, "MOST_GRID_TERMS", 1e4), (checkerboard, "MOST_GRID_TERMS", 1e4),
        (expectation, "_DRAWS_PER_ROUND", 1000), (expectation, "_MOST_DRAWS", 1000),
        (floors, "SETS", 4), (floors, "_MOST_SETS", 4),
        (hydra, "compose", functools.cache(compose)),
        (network, "recovered_density", functools.partial(recovered_density, most_points=1000)),
    ]:  # fmt: skip
        monkeypatch.setattr(module, name, value)
    ends = Counter()
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        frame = compose(command.__name__, return_hydra_config=True)

        @settings(max_examples=number, derandomize=True, deadline=None, database=None,
                  phases=[Phase.generate],
                  suppress_health_check=list(HealthCheck))  # fmt: skip
        @given(configurations(command.__name__))
        def check(config):
            config["paths"] = {"outputs": str(tmp_path)}
            with flag_override(frame.hydra, "readonly", False):
                frame.hydra.runtime.output_dir = tempfile.mkdtemp(dir=tmp_path)
                frame.hydra.job.name = command.__name__
            HydraConfig.instance().set_config(frame)
            try:
                command(OmegaConf.create(config))
                ends["done"] += 1
            except (ConfigError, DivergedError) as error:
                ends[type(error).__name__] += 1

        check()
    record_property("saw", ", ".join(f"{number} {end}" for end, number in ends.items()))
