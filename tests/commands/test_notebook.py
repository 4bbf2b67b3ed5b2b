"""The commands as functions of Python."""

import logging
import os
import shutil
import signal
import subprocess
import sys
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from nbclient import NotebookClient

import ncsn_cli as ncsn
from ncsn_cli.core.errors import ConfigError, MissingInputError, NcsnError
from ncsn_cli.runs.signals import STOPPING
from tests.helpers.commands import QUICK, QUICK_SAMPLE, read
from tests.helpers.problems import two_modes_1d, two_modes_2d

QUICK_RUN = [*QUICK, "metric=[]"]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def mixture():
    return ncsn.Mixture(weights=[0.95, 0.05], means=[[-5, -5], [5, 5]], stds=1.0)


def test_importing_the_package_imports_nothing_else():
    code = "import sys, ncsn_cli; print(*({'torch', 'hydra', 'numpy', 'tqdm'} & {*sys.modules}))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert found.stdout.split() == []


def test_every_promised_name_is_there():
    for name in ncsn.__all__:
        assert getattr(ncsn, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = ncsn.nothing


@pytest.mark.parametrize("sigma", [0.0, 0.5, [0.5, 1.0, 2.0]])
def test_a_mixture_is_that_of_the_dataset(sigma):
    x = np.array([[0.0, 1.0], [-5.0, -4.0], [30.0, 2.0]])
    law, level = two_modes_2d(), torch.tensor(sigma, dtype=torch.float64)
    score, log_prob = mixture().score(x, sigma=sigma), mixture().log_prob(x, sigma)
    assert isinstance(score, np.ndarray)
    assert score.dtype == np.float64
    np.testing.assert_allclose(score, law.score(torch.tensor(x), level).numpy(), rtol=1e-12)
    np.testing.assert_allclose(log_prob, law.log_prob(torch.tensor(x), level).numpy(), rtol=1e-12)


def test_what_comes_in_decides_what_goes_out():
    x = torch.randn(4, 3, 2, dtype=torch.float32, requires_grad=True)
    score = mixture().score(x, sigma=1.0)
    assert isinstance(score, torch.Tensor)
    assert score.dtype == torch.float32
    assert score.shape == (4, 3, 2)
    (gradient,) = torch.autograd.grad(mixture().log_prob(x, 1.0).sum(), x)
    torch.testing.assert_close(gradient, score)
    assert mixture().score(np.zeros((3, 2), np.float32)).dtype == np.float32
    assert mixture().score([[0, 0]]).shape == (1, 2)
    assert mixture().log_prob(np.zeros(2)).shape == ()


def test_views_of_arrays_and_the_users_own_no_grad():
    x = np.arange(12.0).reshape(6, 2)
    np.testing.assert_array_equal(mixture().score(x[::-1]), mixture().score(x)[::-1])
    with torch.no_grad():
        assert not mixture().score(torch.zeros(3, 2, requires_grad=True)).requires_grad


def test_one_dimension_may_be_left_out():
    law = ncsn.Mixture([0.1, 0.9], [-3.0, 3.0])
    x = np.linspace(-5, 5, 7)
    expected = two_modes_1d().score(torch.tensor(x[:, None]), 0.3)[:, 0].numpy()
    np.testing.assert_allclose(law.score(x, 0.3), expected, rtol=1e-12)
    np.testing.assert_allclose(law.score(x[:, None], 0.3)[:, 0], expected, rtol=1e-12)
    assert law.log_prob(x).shape == (7,)
    assert law.sample(5).shape == (5, 1)


def test_the_posterior_mean_is_that_of_bayes():
    # N(2, 3^2) and noise of standard deviation 4: E[x_0 | x] = 2 + 9/25 (x - 2).
    law = ncsn.Mixture([1.0], [2.0], stds=3.0)
    np.testing.assert_allclose(law.denoised(np.array([7.0]), 4.0), [2 + 9 / 25 * 5])


def test_draws_depend_on_the_seed_alone():
    first, again, other = (mixture().sample(100, seed=s) for s in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: ncsn.Mixture([0.5, 0.6], [0.0, 1.0]), "weights: they must sum to 1"),
        (lambda: ncsn.Mixture([1.0], [[0.0, 0.0]], stds=-1.0), "stds"),
        (lambda: mixture().score(np.zeros((3, 3))), "D = 2"),
        (lambda: mixture().score(np.zeros((3, 2)), -1.0), "sigma: it should be >= 0"),
        (lambda: mixture().score(np.zeros((3, 2)), [0.1, 0.2]), "one for each point"),
        (lambda: ncsn.Mixture([1.0], [[np.nan, 0.0]]), "means"),
        (lambda: ncsn.measure([[1, 2], [3]], mixture()), "samples: they are no array"),
        (lambda: ncsn.train("-m", "seed=0,1"), "flags are for the command line"),
        (lambda: ncsn.train("seed=0,1"), "a comma separates values"),
        (lambda: ncsn.train("trainer.steps = 9"), "type trainer.steps=9"),
        (lambda: ncsn.train("mdsm_1d"), "type experiment=mdsm_1d"),
        (lambda: ncsn.train(trainer=3), "trainer=3: a group takes the name of an option"),
        (lambda: ncsn.train(folder=""), "hydra.run.dir: it is empty"),
        (lambda: ncsn.train(config_dir="missing"), "config_dir: there is no folder"),
        (lambda: ncsn.Mixture([1.0], [[0.0], [1.0, 2.0]]), "means: it is no array"),
        (lambda: ncsn.Mixture("a", [0.0]), "weights: it should hold real numbers"),
        (lambda: mixture().score("text"), "x: it should hold real numbers"),
        (lambda: mixture().score(np.zeros((3, 2)) * 1j), "x: it should hold real numbers"),
        (lambda: mixture().score(torch.zeros(3, 2) * 1j), "x: its numbers are complex"),
        (lambda: mixture().score(np.zeros((3, 2)), np.nan), "sigma: it should be >= 0"),
        (lambda: mixture().sample(0), "num: it should be a whole number above 0"),
        (lambda: mixture().sample(3, sigma=-1.0), "sigma: it should be >= 0"),
        (lambda: ncsn.measure(np.zeros((5, 2)), None), "dataset=null: a group takes the name"),
        (lambda: ncsn.train("dataset=ring2d"), "did you mean ring_2d?"),
        (lambda: ncsn.train(trainer={"step": 3}), "trainer.step"),
        (lambda: ncsn.train(trainer={"steps": "many"}), "trainer.steps"),
        (lambda: ncsn.train(hparams_search="seeds"), "one call is one run"),
        (lambda: ncsn.sample(score="exact"), "dataset"),
        (lambda: ncsn.measure(np.zeros((5, 3)), mixture()), "D = 2"),
        (lambda: ncsn.measure(np.full((5, 2), np.nan), mixture()), "5 of 5 rows are not finite"),
        (lambda: ncsn.measure(np.zeros((5, 2)), "ring2d"), "did you mean ring_2d?"),
        (lambda: ncsn.measure(np.zeros((5, 2)), mixture(), -1.0), "sigma"),
        (
            lambda: ncsn.measure(np.zeros((5, 2)), mixture(), denoise=True),
            "did you mean denoised?",
        ),
        (lambda: ncsn.train("+trainer.step=3"), "did you mean steps?"),
    ],
)
def test_mistakes_are_exceptions_with_the_commands_text(make, says, tmp_path):
    with pytest.raises((NcsnError, ValueError), match=".*".join(says.split("?"))) as raised:
        make()
    assert "internal" not in str(raised.value)
    shown = "".join(traceback.format_exception(raised.value))
    assert shown.count("Traceback (most recent call last)") == 1
    assert len(str(raised.value).splitlines()) <= 2
    assert list(tmp_path.iterdir()) == []


def test_missing_runs():
    for missing in (lambda: ncsn.load_run("nowhere"), lambda: ncsn.sample("nowhere")):
        with pytest.raises(MissingInputError, match="nowhere"):
            missing()


def test_trains_samples_and_measures_as_the_commands_do(tmp_path, trained, succeed):
    ours = ncsn.train(*QUICK_RUN, folder="runs/a")
    assert ours.folder.resolve() == tmp_path / "runs" / "a"
    assert ours.state == "done"
    assert {**ours.metrics, "seconds": 0} == {**read(trained / "metrics.json"), "seconds": 0}
    assert (ours.folder / "train.log").read_text().count("\n") > 2
    assert ours.history["step"][-1] == 30
    assert ours.config["trainer"]["steps"] == 30
    # The score is a function, the same for numpy and torch.
    x = np.linspace(-4, 4, 9)
    score = ours.score(x, 0.5)
    assert score.shape == x.shape
    torch.testing.assert_close(
        ours.score(torch.tensor(x, dtype=torch.float32), 0.5),
        torch.tensor(score, dtype=torch.float32),
    )
    # The samples are the command's to the bit.
    drawn = ncsn.sample(ours, sampler="probability_flow", num_samples=50, plot=[], trajectories=0)
    other = succeed(
        "ncsn-sample", "checkpoint=runs/a", "sampler=probability_flow", "num_samples=50",
        "plot=[]", "trajectories=0", folder=tmp_path,
    )  # fmt: skip
    with np.load(other / "samples.npz") as arrays:
        assert np.array_equal(drawn.samples, arrays["samples"])
    assert {**drawn.metrics, "seconds": 0} == {**read(other / "metrics.json"), "seconds": 0}
    np.testing.assert_array_equal(drawn.score(x, 0.5), score)
    # So are the metrics.
    found = ncsn.measure(drawn, "two_modes_1d", metric=["moments"])["moments"]
    assert found["value"] == drawn.metrics["clean"]["moments"]["value"]
    assert found["ratio"] == pytest.approx(found["value"] / found["floor"])


def test_a_mixture_is_a_dataset_of_the_commands():
    drawn = ncsn.sample(
        None, *QUICK_SAMPLE, score="exact", dataset=mixture(), schedule="geometric",
        sampler="probability_flow",
    )  # fmt: skip
    assert drawn.samples.shape == (200, 2)
    assert drawn.config["dataset"]["means"] == [[-5, -5], [5, 5]]
    x = np.array([[1.0, 2.0]])
    np.testing.assert_array_equal(drawn.score(x, 0.5), mixture().score(x, 0.5))


@pytest.mark.slow
def test_measures_what_is_wrong():
    # Samples of N(0, 2) against N(0, 1): the Frechet distance is sqrt(2) - 1. Its relative error
    # for n draws is about 1/sqrt(2 n) times sqrt(2)/(sqrt(2) - 1).
    x = np.random.default_rng(0).standard_normal((20_000, 1)) * np.sqrt(2)
    found = ncsn.measure(x, ncsn.Mixture([1.0], [0.0]), metric=["moments", "wasserstein"])
    assert found["moments"]["value"] == pytest.approx(np.sqrt(2) - 1, rel=5 * 0.005 * 3.4)
    assert found["moments"]["ratio"] > 20
    assert list(found) == ["moments", "wasserstein"]
    perturbed = ncsn.measure(x, ncsn.Mixture([1.0], [0.0]), sigma=1.0, metric=["moments"])
    assert perturbed["moments"]["value"] < found["moments"]["floor_quantiles"][1] * 2


def test_gives_back_what_it_borrowed(tmp_path):
    torch.set_num_threads(2)
    logger = logging.getLogger("ncsn_cli")
    handlers, level = [*logging.getLogger().handlers], logger.level
    before = (
        [signal.getsignal(n) for n in STOPPING], os.getcwd(), dict(os.environ),
        torch.random.get_rng_state(), np.random.get_state()[1].tolist(), [*sys.path],
    )  # fmt: skip
    try:
        for seed in range(2):
            ncsn.train(*QUICK_RUN, "trainer.steps=2", seed=seed)
        with pytest.raises(ConfigError):
            ncsn.train(*QUICK_RUN, "trainer.steps=0")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    after = (
        [signal.getsignal(n) for n in STOPPING], os.getcwd(), dict(os.environ),
        torch.random.get_rng_state(), np.random.get_state()[1].tolist(), [*sys.path],
    )  # fmt: skip
    for one, other in zip(before, after, strict=True):
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
    assert logging.getLogger().handlers == handlers
    assert logger.level == level


def test_leaves_hydra_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "app.yaml").write_text("x: 3\n")
    with initialize_config_dir(str(tmp_path / "mine"), version_base="1.3"):
        outer, config = GlobalHydra.instance().hydra, HydraConfig.instance().cfg
        ncsn.measure(np.zeros((5, 2)), mixture(), metric=["moments"])
        assert GlobalHydra.instance().hydra is outer
        assert HydraConfig.instance().cfg is config
        assert compose("app").x == 3


@pytest.mark.slow
def test_calls_from_two_threads_wait_for_each_other(tmp_path):
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(ncsn.train, *QUICK_RUN, folder=f"{i}", seed=i) for i in range(2)]
        runs = [job.result() for job in jobs]
    assert [run.state for run in runs] == ["done", "done"]
    assert [run.config["seed"] for run in runs] == [0, 1]


@pytest.mark.slow
def test_a_run_is_found_from_another_folder(tmp_path, monkeypatch):
    made = ncsn.train(*QUICK_RUN, "trainer.steps=2", folder="a")
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    assert made.metrics["sigmas"]
    checkpoint = next(made.folder.glob("checkpoints/*"))
    drawn = ncsn.sample(checkpoint, *QUICK_SAMPLE)
    x = np.array([0.5])
    np.testing.assert_array_equal(drawn.score(x, 1.0), made.score(x, 1.0))


def test_a_run_is_never_overwritten():
    ncsn.train(*QUICK_RUN, "trainer.steps=2", folder="a")
    with pytest.raises(NcsnError, match="holds a run"):
        ncsn.train(*QUICK_RUN, "trainer.steps=2", folder="a")
    assert ncsn.load_run("a").state == "done"
    shutil.copytree("a", "outputs/train/runs/b")
    assert ncsn.load_run("latest").folder.name == "b"


@pytest.mark.slow
def test_the_recorded_command_repeats_the_run(tmp_path):
    first = ncsn.train(*QUICK_RUN, trainer={"steps": 2}, dataset=ncsn.Mixture([1.0], [1.5]))
    command = read(first.folder / "run.json")["command"]
    assert command.startswith("ncsn-train ")
    assert "pytest" not in command
    path = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
    shell = subprocess.run(
        command, shell=True, cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "PATH": path},
    )  # fmt: skip
    assert shell.returncode == 0, shell.stderr
    assert len(list(tmp_path.glob("outputs/train/runs/*"))) == 2


def test_an_option_of_ones_own(tmp_path):
    (tmp_path / "mine" / "dataset").mkdir(parents=True)
    (tmp_path / "mine" / "dataset" / "far.yaml").write_text(
        "_target_: ncsn_cli.datasets.GaussianMixture\nweights: [1.0]\nmeans: [[70.0]]\nstds: 1.0\n"
        "covariances: null\nnum_samples: null\nseed: 0\n"
    )
    found = ncsn.measure(np.full((3, 1), 70.0), "far", config_dir="mine", metric=["moments"])
    assert found["moments"]["value"] == pytest.approx(1.0)  # three equal points have no width


@pytest.mark.slow
def test_ctrl_c_saves_the_run_and_raises(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import ncsn_cli as ncsn, os, signal, threading, time\n"
        "def press():\n"
        "    while not os.path.exists('a/run.json'):\n"
        "        time.sleep(0.1)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "threading.Thread(target=press).start()\n"
        "try:\n"
        "    ncsn.train('trainer.steps=1000000', folder='a')\n"
        "except KeyboardInterrupt as stop:\n"
        "    print(*stop.__notes__)\n"
        "print(ncsn.load_run('a').state)\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, cwd=tmp_path)
    assert "trainer.resume=a" in done.stdout, done.stderr
    assert done.stdout.splitlines()[-1] == "interrupted"


def python_block():
    """The first block of Python in the page about Python."""
    page = (Path(__file__).parents[2] / "docs" / "how_to" / "python.md").read_text()
    return page.partition("```python\n")[2].partition("```")[0]


EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.slow
def test_the_teachers_notebook_runs_and_its_answers_are_right(tmp_path):
    notebook = nbformat.read(EXAMPLES / "ten_minutes.ipynb", as_version=4)
    stored = [cell.get("outputs") for cell in notebook.cells]
    answers = [cell for cell in notebook.cells if "<summary>Answer" in cell.source]
    assert len(answers) == sum("**Question" in cell.source for cell in notebook.cells) == 9
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": tmp_path}}).execute()
    for cell, before in zip(notebook.cells, stored, strict=True):
        now = [out for out in cell.get("outputs", []) if out.get("name") == "stdout"]
        assert bool(now) == bool(before)  # and each cell asserts what its answer says


@pytest.mark.slow
def test_the_notebook_with_the_lines_of_the_page_runs(tmp_path):
    notebook = nbformat.read(EXAMPLES / "first_steps.ipynb", as_version=4)
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    assert "\n\n".join(code) == python_block().strip()
    assert len(python_block().splitlines()) < 20
    (training,) = (cell for cell in notebook.cells if "ncsn.train(" in cell.source)
    few = '"schedule.num_levels=4", trainer={"steps": 50, "threads": 1}, animation=[], folder='
    training.source = training.source.replace("folder=", few)  # seconds, not a minute
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": tmp_path}}).execute()
    shown = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    streams = {name: "".join(o["text"] for o in shown if o.get("name") == name)
               for name in ("stdout", "stderr")}  # fmt: skip
    assert "training |" in streams["stderr"]  # a bar
    assert "arning" not in streams["stderr"]
    assert float(streams["stdout"].split()[-1]) > 5  # 5000 samples, 1.1 times too wide
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["a"]
    assert list(tmp_path.glob("outputs/sample/runs/*/samples.npz"))
