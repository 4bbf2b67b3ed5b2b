"""What others wrote is data: no checkpoint, run folder or name runs code or leaves its folder."""

import ast
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from ncsn_cli.commands.cli import config_dir
from ncsn_cli.models import MLP
from ncsn_cli.runs.checkpoints import checkpoint_path, load_checkpoint, save_checkpoint
from tests.faults import hostile

PACKAGE = Path(__file__).parents[2] / "ncsn_cli"
TINY = [
    "trainer.steps=4", "trainer.batch_size=8", "trainer.eval_every=4", "trainer.log_every=2",
    "trainer.lr_decay=none", "schedule.num_levels=3", "dataset.num_samples=20", "plot=[]",
    "trainer.ema_decay=null", "model=mlp", "dataset=two_modes_1d",
    "trainer.ema_decay=null", "model=mlp", "dataset=two_modes_1d",
]  # fmt: skip
DRAW = ["num_samples=2", "metric=[]", "plot=[]", "trajectories=0", "++sampler.steps_per_level=1"]
REFUSED = (2, 65, 66, 71)


def spread(items, number):
    """``number`` of the items, or all if there are fewer, from the first to the last."""
    items = list(items)
    number = min(number, len(items))
    return [items[i * len(items) // number] for i in range(number)]


class Command:
    """Runs commands in an own folder with ``hostile.limit``, and looks what they left."""

    def __init__(self, server, folder):
        self.server, self.folder, self.slowest = server, folder, 0.0
        self.canary = folder / "canary"
        self.home = folder / "home"
        self.work = folder / "work"
        for path in (self.home, self.work):
            path.mkdir()

    def __call__(self, command, *arguments, codes):
        before = ["tests.faults.hostile", "limit", str(self.home)]
        start = time.monotonic()
        result = self.server.call(command, arguments, self.work, before)
        self.slowest = max(self.slowest, time.monotonic() - start)
        said = f"{result.returncode}: {result.stderr[-1000:]}"
        assert result.returncode in codes, said
        assert "Traceback" not in result.stderr, said
        if result.returncode:
            assert len([line for line in result.stderr.splitlines() if line.strip()]) <= 3, said
        assert hostile.SECRET not in result.stdout + result.stderr, said
        assert not self.canary.exists(), said
        assert not re.search(r"[\x00-\x08\x0b-\x1f]", result.stderr), said
        return result


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a small run, as far as others read it."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        config = OmegaConf.to_container(compose("train", TINY), resolve=False)
    del config["paths"]
    network = MLP(
        1, **{key: config["model"][key] for key in ("hidden", "activation", "conditional")}
    )
    tensors = {f"network.{name}": value for name, value in network.state_dict().items()}
    tensors["generator"] = torch.Generator().get_state()
    record = {"config": config, "step": 4, "device_type": "cpu", "optimizer": {}}
    save_checkpoint(checkpoint_path(folder, 4), tensors, record)
    for name, values in {
        "config.yaml": config,
        ".hydra/overrides.yaml": TINY,
        "run.json": {"request": "", "seconds": 1.0},
        "status.json": {"state": "done", "step": 4, "error": None},
        "metrics.json": {"excess_loss": 1.0, "score_error": 1.0, "seconds": 1.0},
    }.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(values))
    return folder


@pytest.fixture
def command(forked, tmp_path):
    return Command(forked, tmp_path)


def test_the_good_run_is_read_within_the_limits(trained, command):
    command("sample", f"checkpoint={trained}", *DRAW, codes=[0])
    command("compare", str(trained), codes=[0])


@pytest.mark.slow
def test_a_checkpoint_is_never_more_than_data(trained, command, trials, record_property):
    (good,) = (trained / "checkpoints").iterdir()
    tensors, record = load_checkpoint(good)
    files = {
        **hostile.special_attacks(),
        **hostile.pickle_attacks(command.canary, good.read_bytes()),
        **hostile.header_attacks(),
    }
    attacks = files | hostile.record_attacks(tensors, record, command.canary)
    number = trials("E1", len(attacks), 7)
    for i, (name, make) in enumerate(spread(attacks.items(), number)):
        print(name)
        folder = command.folder / f"run_{i}"
        path = folder / "checkpoints" / "step_000000004.safetensors"
        path.parent.mkdir(parents=True)
        make(path)
        source = folder if i % 3 == 0 else path
        command("sample", f"checkpoint={source}", *DRAW, codes=REFUSED)
        if i % 4 == 1 and name in files:
            resumed = command("train", *TINY, f"trainer.resume={source}", codes=REFUSED)
            shown = os.path.relpath(path, command.work)
            assert "trainer.resume" in resumed.stderr or shown in resumed.stderr
    assert not list(command.work.glob("outputs/*/runs/*/metrics.json"))
    record_property("saw", f"slowest {command.slowest:.1f} s")


def test_no_process_is_started_and_no_connection_made(trained, command, trials):
    if not shutil.which("strace") or trials("E1", 4, 0) == 0:
        pytest.skip("needs strace and --all-trials")
    (good,) = (trained / "checkpoints").iterdir()
    tensors, record = load_checkpoint(good)
    attacks = {
        **hostile.pickle_attacks(command.canary, good.read_bytes()),
        **hostile.record_attacks(tensors, record, command.canary),
    }
    seen = []
    for name in ("torch zip", "appended pickle", "call as model", "nested"):
        path, log = command.folder / "evil.safetensors", command.folder / "log"
        attacks[name](path)
        script = Path(sys.executable).with_name("ncsn-sample")
        for checkpoint in [good, path] if not seen else [path]:
            calls = ["strace", "-f", "-qq", "-e", "trace=execve,connect", "-o", str(log)]
            result = subprocess.run(
                [*calls, sys.executable, script, f"checkpoint={checkpoint}", *DRAW],
                cwd=command.work, capture_output=True, text=True,
            )  # fmt: skip
            assert result.returncode in ((0,) if checkpoint == good else REFUSED), result.stderr
            seen.append(re.findall(r"(execve\([^,]*|connect\(.*)", log.read_text()))
    assert not command.canary.exists()
    for calls in seen[1:]:
        assert set(calls) <= set(seen[0])
    assert not any("connect" in call for calls in seen for call in calls)


def run_attacks(canary):
    """(a file of a run's folder, name, maker)."""
    special, values = hostile.special_attacks(), hostile.json_attacks()
    files = {
        "config.yaml": special | hostile.yaml_attacks(canary),
        ".hydra/overrides.yaml": special | hostile.yaml_attacks(canary),
        ".hydra/hydra.yaml": {"logging": hostile.yaml_attacks(canary)["logging"]},
        "metrics.json": special | values,
        "status.json": special | values,
        "run.json": special | values,
        "history.csv": special | hostile.csv_attacks(),
        "snapshots.npz": special | hostile.npz_attacks(canary),
        "plots/score.png": special,
    }  # fmt: skip
    return [(file, name, make) for file, makers in files.items() for name, make in makers.items()]


@pytest.mark.slow
def test_a_run_folder_is_never_more_than_data(trained, command, trials, record_property):
    attacks = run_attacks(command.canary)
    number = trials("E3", 150, 10)
    for i, (file, name, make) in enumerate(spread(attacks, number)):
        print(file, name)
        folder = command.work / f"run_{i}"
        shutil.copytree(trained, folder)
        put(folder / file, make)
        if file not in ("history.csv", "snapshots.npz"):
            more = ["--output", str(folder)] if file.startswith("plots") else []
            command("compare", str(trained), str(folder), *more, codes=[0])
            for page in (command.work / "outputs/compare").glob("runs/*/report.html"):
                assert hostile.SCRIPT not in page.read_text()
        else:
            more = [f"trainer.resume={folder}", "trainer.snapshots=1", "animation=[score]"]
            command("train", *TINY, *more, codes=REFUSED)
        if i % 8 == 0:
            command("sample", f"checkpoint={folder}", *DRAW, codes=[0])
    record_property("saw", f"slowest {command.slowest:.1f} s")


def put(path, make):
    """Make a file where there may be one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    make(path)


def test_a_sweep_run_again_reads_data(forked, command, trials):
    if (number := trials("E3", 12, 0)) == 0:
        pytest.skip("needs --all-trials")
    arguments = ["-m", *TINY, "seed=1,2"]
    result = forked.call("train", [*arguments, "hydra.sweep.dir=good"], command.work)
    assert result.returncode == 0, result.stderr
    values = hostile.special_attacks() | hostile.json_attacks()
    files = ("metrics.json", "status.json", "run.json")
    attacks = [(file, *attack) for file in files for attack in values.items()]
    for i, (file, name, make) in enumerate(spread(attacks, number)):
        print(file, name)
        sweep = command.work / f"sweep_{i}"
        shutil.copytree(command.work / "good", sweep, symlinks=True)
        first = min(path for path in sweep.iterdir() if path.name.startswith("seed"))
        put(first / file, make)
        codes = (0, 1, 2, 65, 73)
        result = forked.call("train", [*arguments, f"hydra.sweep.dir={sweep}"], command.work)
        assert result.returncode in codes, result.stderr
        assert "Traceback" not in result.stderr
        assert "internal error" not in result.stderr
        assert not command.canary.exists()


UP = "../../../../../../outside/x"  # from the plots of a run
NAMES = [
    UP, "/OUTSIDE/x", "..", ".", "", " ", "a/b", "a/../../../x", "x\ny", "-x", "--help", "~",
    "~/x", "$HOME", "é", "\u202ex", "a" * 300, "x.", "x ", ".hidden", "x\\y", "*", "x\ty",
    "C:x", "x;y",
]  # fmt: skip


def manifest(top, but):
    """What is below ``top``, apart from one folder."""
    found = {}
    for path in sorted(top.rglob("*")):
        if but != path and but not in path.parents and but.parent != path:
            status = path.lstat()
            data = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
            digest = hashlib.sha256(data).hexdigest()
            found[str(path)] = status.st_size, status.st_mtime_ns, digest
    return found


def path_attacks(command, trained):
    """(command, arguments, a function to be called before)."""
    options, outside = command.folder / "options", command.folder / "outside"
    outside.mkdir()
    (outside / "file").write_text("untouched")
    draw = ["score=exact", "dataset=two_modes_1d", "schedule=single", "sampler=langevin",
            "++sampler.steps=1", *DRAW[:4]]  # fmt: skip
    names = [name.replace("/OUTSIDE", str(outside)) for name in NAMES]
    for group, target in (("plot", "samples"), ("metric", "")):
        (options / group).mkdir(parents=True)
        for i, name in enumerate(names):
            value = f"ncsn_cli.plots.{target}" if target else "ncsn_cli.metrics.Wasserstein"
            values = {name: {"_target_": value, **({"_partial_": True} if target else {})}}
            (options / group / f"evil_{i}.yaml").write_text(json.dumps(values))
            chosen = [a for a in draw if not a.startswith(f"{group}=")]
            yield "sample", [f"--config-dir={options}", *chosen, f"{group}=[evil_{i}]"], None
    for name in names:
        yield "sample", [*draw, f"hydra.job.name='{name}'"], None
        yield "sample", [*draw, f"dataset='{name}'"], None
    links = ["checkpoints", "plots", "animations", ".hydra", "train.log", "config.yaml",
             "run.json", "status.json", "history.csv", "metrics.json", ".lock"]  # fmt: skip
    for i, name in enumerate(links):
        target = outside / ("file" if "." in name[1:] else "")
        folder = command.work / "outputs" / f"linked_{i}"
        yield (
            "train",
            [*TINY, "plot=[loss]", f"hydra.run.dir={folder}"],
            lambda folder=folder, name=name, target=target: put(
                folder / name, hostile.link(target)
            ),
        )
    for i, name in enumerate(["plots", "compare.csv", "report.html"]):
        target = outside / ("file" if "." in name else "")
        folder = command.work / "outputs" / f"compared_{i}"
        yield (
            "compare",
            [str(trained), "--output", str(folder)],
            lambda folder=folder, name=name, target=target: put(
                folder / name, hostile.link(target)
            ),
        )


def test_nothing_is_written_outside(trained, command, trials, record_property):
    attacks = list(path_attacks(command, trained))
    for number, arguments, prepare in spread(attacks, trials("E5", len(attacks), 7)):
        print(number, arguments)
        if prepare is not None:
            prepare()
        (command.work / "outputs").mkdir(exist_ok=True)
        before = manifest(command.folder, command.work / "outputs")
        command(number, *arguments, codes=(0, 2, 73))
        assert manifest(command.folder, command.work / "outputs") == before
    record_property("saw", f"slowest {command.slowest:.1f} s")


def test_hydras_pickle_of_a_run_is_refused(command):
    path = command.work / "config.pickle"
    hostile.pickle_attacks(command.canary, b"")["protocol 4"](path)
    for flag in (["--experimental-rerun", str(path)], [f"--experimental-rerun={path}"],
                 ["--exp", str(path)]):  # fmt: skip
        result = command("train", *flag, codes=[2])
        assert result.stderr.startswith("ncsn-train: --experimental-rerun")


FORBIDDEN = {
    "eval", "exec", "compile", "__import__", "torch.load", "yaml.unsafe_load", "yaml.full_load",
    "os.system", "os.popen", "torch.hub.load", "torch.jit.load",
}  # fmt: skip


def dotted(node):
    return ast.unparse(node) if isinstance(node, ast.Attribute | ast.Name) else ""


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.name)
def test_the_source_has_no_pickle_and_no_shell(path):
    for found in violations(path.read_text()):
        pytest.fail(f"{path.name}: {found}")


def violations(source):
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            forbidden = {"pickle", "cPickle", "dill", "joblib", "cloudpickle", "shelve", "marshal"}
            if ast.unparse(node) == "from joblib import cpu_count":
                continue
            if forbidden & {name.split(".")[0] for name in names}:
                yield ast.unparse(node)
        if not isinstance(node, ast.Call):
            continue
        name, keywords = dotted(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
        if name == "torch.load" and keywords.get("weights_only") == "True":
            continue  # tensors only
        if name in FORBIDDEN or keywords.get("shell") == "True":
            yield ast.unparse(node)
        if keywords.get("allow_pickle", "False") != "False":
            yield ast.unparse(node)
        if name == "yaml.load" and keywords.get("Loader") != "loader":
            yield ast.unparse(node)  # of compare.py, where it is SafeLoader


@pytest.mark.parametrize(
    "source",
    ["import pickle", "from pickle import loads", "torch.load(x)", "np.load(x, allow_pickle=True)",
     "yaml.load(x)", "yaml.load(x, Loader=yaml.Loader)", "eval(x)", "run(x, shell=True)"],
)  # fmt: skip
def test_the_scan_sees(source):
    assert list(violations(source))
