"""The live page computes what Python computes, and its controls do what they say."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import binom

import ncsn_cli
from ncsn_cli.commands.live import law_of
from ncsn_cli.datasets import GaussianMixture, grid
from ncsn_cli.models import (
    MLP,
    EmbeddingMLP,
    EnergyMLP,
    FourierMLP,
    MixtureScore,
    NCSNv2MLP,
    PreconditionedMLP,
)
from ncsn_cli.plots.live import LiveState, UnknownOperationError, live_page, program_of
from ncsn_cli.samplers import (
    AnnealedLangevin,
    Langevin,
    ProbabilityFlow,
    ReverseDiffusion,
    plan_of,
)
from ncsn_cli.schedules import Geometric
from tests.helpers.browser import answer_of, needs_browser
from tests.helpers.problems import correlated_2d, shaken, stream, two_modes_1d, two_modes_2d
from tests.helpers.slow import slow_but

SCRIPTS = Path(ncsn_cli.__file__).parent / "plots" / "live"


def page_of(dataset, program=None, **state):
    return live_page(
        "A page", {"law": law_of(dataset)}, LiveState("law", **state), program=program
    )


def padded(x):
    """Points as the page takes them: two coordinates each, flat."""
    return torch.nn.functional.pad(x.double(), (0, 2 - x.shape[1])).flatten().tolist()


def scores(page, x, sigmas, folder):
    """The page's score at points (B, D) and each of the levels."""
    found = answer_of(
        page,
        f"""const x = Float64Array.from({json.dumps(padded(x))}), out = new Float64Array(x.length);
        return {json.dumps(sigmas)}.map((sigma) => {{
          for (let i = 0; i < {len(x)}; i += 250)
            chains.score(x, sigma, out, i, Math.min({len(x)}, i + 250));
          return Array.from(out);
        }});""",
        folder,
    )
    return torch.tensor(found).double().view(len(sigmas), len(x), 2)[..., : x.shape[1]]


SIGMAS = [0.05, 0.7, 10.0]

LAWS = {"1d": two_modes_1d, "full": correlated_2d, "grid": grid, "equal": two_modes_2d}


@needs_browser
@pytest.mark.parametrize("name", slow_but(LAWS, 1))
def test_the_exact_score_is_that_of_python(name, tmp_path):
    dataset = LAWS[name]()
    x = 6 * torch.randn(1000, dataset.dim, generator=stream(), dtype=torch.float64)
    found = scores(page_of(dataset), x, SIGMAS, tmp_path)
    for sigma, score in zip(SIGMAS, found, strict=True):
        expected = sigma * dataset.score(x, sigma)
        assert torch.allclose(sigma * score, expected, rtol=1e-5, atol=1e-5)


KINDS = [MLP, EmbeddingMLP, NCSNv2MLP, FourierMLP, PreconditionedMLP, EnergyMLP, MixtureScore]


@needs_browser
@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("dim", [1, 2])
def test_the_networks_score_is_that_of_python(kind, dim, tmp_path):
    torch.manual_seed(0)
    network = shaken(kind(dim=dim)).eval()
    x = 4 * torch.randn(1000, dim, generator=stream())
    dataset = two_modes_1d() if dim == 1 else two_modes_2d()
    page = page_of(dataset, program_of(network, dim, (10.0, 0.05)), score="network")
    found = scores(page, x, SIGMAS, tmp_path)
    for sigma, score in zip(SIGMAS, found, strict=True):
        with torch.no_grad():
            expected = sigma * network(x, torch.tensor(sigma)).double()
        # Both round to float32: errors grow with the largest number on the way.
        scale = max(1.0, float(expected.abs().max()))
        assert float((sigma * score - expected).abs().max()) < 1e-5 * scale


WEIGHTS = torch.ones(2, 2)


def halved_in_place(x, sigma):
    y = x * 1
    y.unsqueeze(0).mul_(0.5)
    return y


def halved_under_a_view(x, sigma):
    y = x * 1
    view = y.view(-1, 2)
    y.mul_(0.5)
    return view


REFUSED = {
    "an unknown operation": lambda x, sigma: x.cumsum(0),
    "numbers of x": lambda x, sigma: x * float(x.sum()),
    "a branch": lambda x, sigma: x / sigma if sigma > 3 else x,
    "a mask": lambda x, sigma: x * (sigma > 3).float(),
    "other points": lambda x, sigma: x - x.sum(0),
    "a mean over points": lambda x, sigma: x - x.sum(0, keepdim=True) / len(x),
    "rounding": lambda x, sigma: torch.div(x, sigma, rounding_mode="trunc"),
    "a factor": lambda x, sigma: torch.addmm(x.new_ones(2), x, WEIGHTS, beta=0.5),
    "alpha": lambda x, sigma: torch.rsub(x, 1, alpha=2),
    "a view": halved_in_place,
    "under a view": halved_under_a_view,
    "an axis": lambda x, sigma: torch.cat([x, x])[: len(x)],
    "four axes": lambda x, sigma: x.view(-1, 1, 1, 2).expand(-1, 2, 1, 2).sum(1)[:, 0],
}


@pytest.mark.parametrize("score", REFUSED.values(), ids=REFUSED)
def test_a_network_that_the_page_cannot_carry_out_is_refused(score):
    with pytest.raises(UnknownOperationError):
        program_of(score, 2, (10.0, 0.1))


@needs_browser
def test_the_empirical_score_is_that_of_its_points(tmp_path):
    page = page_of(two_modes_2d(), score="empirical", points=20)
    points = answer_of(
        page, "return Array.from(law.sample(20, 0, new Stream(1000)));", tmp_path
    )  # the page's own, by its seed
    x = 5 * torch.randn(1000, 2, generator=stream(), dtype=torch.float64)
    means = torch.tensor(points).view(-1, 2).tolist()
    empirical = GaussianMixture(weights=[1 / 20] * 20, means=means, stds=0.0)
    found = scores(page, x, [0.7], tmp_path)[0]
    assert torch.allclose(0.7 * found, 0.7 * empirical.score(x, 0.7), rtol=1e-5, atol=1e-5)


@needs_browser
def test_bands_and_true_shares_are_those_of_the_metric(tmp_path):
    dataset = GaussianMixture([0.3, 0.5, 0.2], [[-1.0, 0.0], [1.0, 0.0], [0.0, 1.5]], 0.5)
    bands, truth = answer_of(
        page_of(dataset),
        """const at = [[2000, .05], [2000, .8], [100, .5], [5000, .999], [10, .001]];
        return [at.map(([n, q]) => band(n, q, .005)), law.truth(.5, false)];""",
        tmp_path,
    )
    for (n, q), (low, high) in zip(
        [(2000, 0.05), (2000, 0.8), (100, 0.5), (5000, 0.999), (10, 0.001)], bands, strict=True
    ):
        assert [low * n, high * n] == pytest.approx([*binom.ppf([0.005, 0.995], n, q)])
    # Python's are estimated by draws here: three centres lie on no line. The page's lattice of
    # 6666 points a component errs less: about (log n)/n.
    exact = dataset.mode_moments(0.5)
    for k, mode in enumerate(truth):
        near = 3.5 * float(exact.errors[0][k]) + 2e-3
        assert mode["share"] == pytest.approx(float(exact.shares[k]), abs=near)
        (a, b, d), near = mode["c"], 3.5 * float(exact.errors[2][k].max()) + 5e-3
        assert torch.allclose(
            torch.tensor([[a, b], [b, d]]).double(), exact.covariances[k], rtol=0, atol=near
        )


JUDGED = """
  const off = (law, x, sigma, isDenoised) => {
    const { modes, width, error } = judge(law, x, sigma, isDenoised);
    return [modes.some(({ share, low, high }) => share < low || share > high),
      Math.abs(width - 1) > error];
  };"""


@needs_browser
@pytest.mark.parametrize(("num", "sigma"), [(2000, 0.1), (500, 1.0)])
def test_exact_draws_of_every_law_of_the_documents_are_as_good_as_exact_draws(
    num, sigma, tmp_path
):
    page = (Path(__file__).parents[2] / "docs" / "live.html").read_text()
    found = answer_of(
        page,
        JUDGED
        + f"""return Object.keys(SCENE.laws).map((name) => {{
          const law = lawOf(name);
          return Array.from({{ length: 40 }}, (_, seed) =>
            off(law, law.sample({num}, {sigma}, new Stream(seed)), {sigma}, false));
        }});""",
        tmp_path,
    )
    # At most 1 % each if the bands are right; of 40, 4 or more come with 5e-4, for 8 laws x 2 with
    # 1 %. The band of the width is that of Gaussian modes: those of moons and spiral overlap, so
    # twice as many may be off.
    for law in found:
        shares, widths = (sum(column) for column in zip(*law, strict=True))
        assert shares <= 3 and widths <= 6


@needs_browser
def test_one_mode_and_denoised_points_are_judged_right(tmp_path):
    one = GaussianMixture([1.0], [[0.0, 0.0]], 1.0)
    seen = answer_of(
        page_of(one, num=1000, min=0.5, max=10, sampler="probability_flow"),
        "show(); return find('#shares').innerText;",
        tmp_path,
    )
    assert "mode 1" in seen and "✗" not in seen.splitlines()[1]
    found = answer_of(
        page_of(two_modes_2d()),
        JUDGED
        + """const x = law.sample(2000, 1, new Stream(3)), s = new Float64Array(x.length);
        law.score(x, 1, s, 0, 2000);
        return off(law, x.map((v, i) => v + s[i]), 1, true);""",
        tmp_path,
    )
    assert found == [False, False]


@needs_browser
def test_a_law_of_rank_one_and_a_single_level_without_noise_open(tmp_path):
    c = [[1.26, 0.3276], [0.3276, 0.085176]]  # a d - b b = -1e-17
    thin = GaussianMixture([1.0], [[0.0, 0.0]], covariances=[c])
    assert answer_of(page_of(thin), "frame(); return chains.x.every(Number.isFinite);", tmp_path)
    page = page_of(
        two_modes_2d(), sampler="annealed_langevin", max=0.0, min=0.0, levels=1, steps=50, num=100
    )
    eta, is_finite = answer_of(
        page,
        """while (!chains.hasEnded) chains.advance();
        show();
        return [find("#eta").textContent, chains.x.every(Number.isFinite)];""",
        tmp_path,
    )
    assert is_finite and eta.endswith("= 0.100")


@needs_browser
def test_eta_is_that_of_the_narrowest_direction(tmp_path):
    narrow = "#law=1@0,0@1,.99,1&sampler=langevin&min=0.01&tau=.05"
    answer = "return find('#eta').textContent;"
    eta = answer_of(page_of(two_modes_2d()), answer, tmp_path, narrow)
    assert "4.95" in eta and "diverge" in eta  # .05/(.01 + .0001)
    points = "#score=empirical&max=10&min=.1&tau=.05"  # points have no width: .05/.01
    assert "= 5.00" in answer_of(page_of(two_modes_2d()), answer, tmp_path, points)


@needs_browser
@pytest.mark.slow
@pytest.mark.parametrize("num_levels", [2, 5, 12])
@pytest.mark.parametrize("dataset", [two_modes_1d(), correlated_2d()], ids=["1d", "2d"])
def test_the_probability_flow_takes_pythons_steps(dataset, num_levels, tmp_path):
    sigmas = Geometric(10.0, 0.1, num_levels).sigmas
    x = 10 * torch.randn(300, dataset.dim, generator=stream(), dtype=torch.float64)
    sampler = ProbabilityFlow(denoise=True)
    *_, last = sampler.chain(dataset.score, x, plan_of(sampler, sigmas), generator=stream())
    page = page_of(
        dataset, sampler="probability_flow", max=10, min=0.1, levels=num_levels, num=300,
        denoise=True,
    )  # fmt: skip
    found = answer_of(
        page,
        f"""chains.x.set({json.dumps(padded(x))});
        while (!chains.hasEnded) chains.advance();
        return Array.from(chains.x);""",
        tmp_path,
    )
    ours = torch.tensor(found).double().view(-1, 2)[:, : dataset.dim]
    assert torch.allclose(ours, last.x, rtol=1e-5, atol=1e-5)


SAMPLERS = {
    "langevin": Langevin(step_size=0.05, steps=100),
    "annealed_langevin": AnnealedLangevin(step_size=0.02, steps_per_level=20),
    "reverse_diffusion": ReverseDiffusion(),
    "probability_flow": ProbabilityFlow(),
}


@needs_browser
@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("dataset", [two_modes_1d(), two_modes_2d()], ids=["1d", "2d"])
def test_chains_of_the_page_and_of_python_have_the_same_shares_and_widths(name, dataset, tmp_path):
    # 8 cases with 2 shares of one number and 1 width each: 99.9 % intervals hold all with 98 %.
    num, sampler, sigmas = 4000, SAMPLERS[name], Geometric(20.0, 0.5, 10).sigmas
    tau = {"langevin": 0.05, "annealed_langevin": 0.02}.get(name, 0.1)
    steps = {"langevin": 100, "annealed_langevin": 20}.get(name, 1)
    page = page_of(
        dataset, sampler=name, max=20, min=0.5, num=num, tau=tau, steps=steps, start="normal"
    )
    found = answer_of(
        page,
        """while (!chains.hasEnded) chains.advance();
        return Array.from(chains.x);""",
        tmp_path,
    )
    ours = torch.tensor(found).double().view(-1, 2)[:, : dataset.dim]
    x = 20 * torch.randn(num, dataset.dim, generator=stream())
    *_, last = sampler.chain(dataset.score, x, plan_of(sampler, sigmas), generator=stream(1))
    pages, pythons = (dataset.nearest_mode(points) == 0 for points in (ours, last.x))
    first, second = float(pages.double().mean()), float(pythons.double().mean())
    share = (first + second) / 2
    assert abs(first - second) < 3.29 * math.sqrt(2 * share * (1 - share) / num)
    # Within the larger mode: the variance of a variance of n Gaussian numbers is 2 s^4/n.
    is_large = int(share < 0.5)
    stds = [
        points[dataset.nearest_mode(points) == is_large].double().var(0).mean().sqrt()
        for points in (ours, last.x)
    ]
    few = num * max(share, 1 - share) * dataset.dim
    assert float(stds[0] / stds[1] - 1) == pytest.approx(0, abs=3.29 / math.sqrt(few))


@needs_browser
def test_the_address_holds_the_state_and_a_wrong_one_does_no_harm(tmp_path):
    page = page_of(two_modes_2d())
    answer = "return [state, location.hash, law.num, chains.sigmas.length];"
    address = "#sampler=langevin&levels=7&max=15&seed=4&arrows=false&law=.5@0,0@1;.5@3,1@1,.5,2"
    state, hash_, num, levels = answer_of(page, answer, tmp_path, address)
    given = {"sampler": "langevin", "levels": 7, "max": 15, "seed": 4, "arrows": False}
    assert state.items() >= given.items() and (num, levels) == (2, 7)
    assert answer_of(page, answer, tmp_path, hash_)[0] == state
    wrong = "#sampler=magic&levels=x&max=1e9&law=1@0@-1&tau=&points=-3&nothing=1&score=network"
    state, *_ = answer_of(page, answer, tmp_path, wrong)
    assert (state["sampler"], state["law"], state["score"]) == (
        "annealed_langevin",
        "law",
        "exact",
    )
    assert (state["max"], state["levels"], state["points"]) == (1000, 10, 50)


@needs_browser
def test_modes_are_moved_weighed_added_and_removed_by_keys_and_controls(tmp_path):
    found = answer_of(
        page_of(two_modes_2d(), num=200),
        """frame();
        const seen = [law.components.map(({ w, mu }) => [w, ...mu])];
        const keep = () => seen.push(law.components.map(({ w, mu }) => [w, ...mu]));
        const [first, second] = find("#handles").children;
        second.focus();
        second.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight" }));
        keep();
        const weight = find("#weight");
        weight.value = .4;
        weight.dispatchEvent(new Event("input"));
        keep();
        find("#add").click();
        keep();
        find("#remove").click();
        keep();
        const tab = new KeyboardEvent("keydown", { key: "Tab", bubbles: true, cancelable: true });
        second.dispatchEvent(tab);
        if (tab.defaultPrevented) return "Tab is taken away";
        const space = new KeyboardEvent("keydown", { key: " ", bubbles: true, cancelable: true });
        document.body.dispatchEvent(space);
        const isRunning_ = isRunning && space.defaultPrevented;
        while (!chains.hasEnded) chains.advance();
        show();
        return [seen, isRunning_, find("#shares").innerText, find("#verdict").textContent];""",
        tmp_path,
    )
    (start, moved, weighed, added, removed), is_running, table, verdict = found
    assert moved[1][1] > start[1][1] and moved[0] == start[0] and moved[1][2] == start[1][2]
    assert [w for w, *_ in weighed] == pytest.approx([0.6, 0.4], abs=1e-4)
    assert len(added) == 3 and len(removed) == 2
    assert (
        is_running and "mode 1" in table and "width" in table and verdict.startswith("At the end")
    )


def test_the_page_is_small_plain_and_asks_for_nothing():
    page = page_of(two_modes_2d(), program_of(shaken(PreconditionedMLP(dim=2)), 2, (9.0, 0.1)))
    assert len(page.encode()) < 400_000
    assert not re.search(r"https?:|\bimport\b|fetch\(|src=|XMLHttp", page)
    lines = [len(path.read_text().splitlines()) for path in SCRIPTS.glob("*.js")]
    assert sum(lines) <= 600 and "default-src 'none'" in page


def test_a_law_without_components_is_that_of_its_draws():
    from ncsn_cli.datasets import Checkerboard

    law = law_of(Checkerboard())
    assert np.sum([w for (w,), *_ in law]) == pytest.approx(1)
    assert all(c == [0.0] for *_, c in law)


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ["experiment=ism_1d"],  # one level, sigma = 0
        ["dataset=checkerboard_2d", "model=energy_mlp"],
        ["dataset=grid_2d", "schedule=karras", "sampler=predictor_corrector"],
    ],
    ids=" ".join,
)
def test_every_run_has_a_page_with_its_network(arguments, tmp_path, succeed):
    few = ["trainer.steps=2", "plot=[loss]", "animation=[]"]
    run = succeed("ncsn-train", *arguments, *few, folder=tmp_path)
    page = (run / "live.html").read_text()
    assert '"score":"network"' in page and len(page) < 400_000
    assert 'href="live.html"' in (run / "report.html").read_text()
    samples = succeed(
        "ncsn-sample", f"checkpoint={run}", "num_samples=50", *few[1:], folder=tmp_path
    )
    assert '"score":"network"' in (samples / "live.html").read_text()


@pytest.mark.slow
def test_a_run_without_pictures_or_of_three_dimensions_has_no_page(tmp_path, succeed):
    means = ["dataset=mixture", "dataset.weights=[1]", "dataset.means=[[0,0,0]]", "plot=[loss]"]
    for arguments in (["plot=[]"], means):
        run = succeed("ncsn-train", *arguments, "trainer.steps=2", "animation=[]", folder=tmp_path)
        assert not (run / "live.html").exists()


@needs_browser
@pytest.mark.slow
@pytest.mark.parametrize(
    "sampler",
    [
        ["sampler=annealed_langevin", "sampler.steps_per_level=20", "sampler.step_size=0.02"],
        ["sampler=probability_flow"],
        ["sampler=langevin", "sampler.steps=200", "sampler.step_size=0.05", "init=uniform"],
        ["sampler=reverse_diffusion", "sampler.denoise=true"],
    ],
    ids=lambda words: words[0],
)
def test_a_runs_own_page_gives_the_shares_that_ncsn_sample_gave(sampler, tmp_path, succeed):
    words = [
        "score=exact",
        "dataset=song_ermon_2d",
        "schedule=geometric",
        "schedule.num_levels=10",
    ]
    words += [
        "schedule.sigma_max=20",
        "schedule.sigma_min=0.5",
        "num_samples=2000",
        "plot=[samples]",
    ]
    run = succeed("ncsn-sample", *words, "init=prior", *sampler, folder=tmp_path)
    entry = json.loads((run / "metrics.json").read_text())
    share = (entry.get("denoised") or entry["perturbed"])["mode_weights"]["weights"][0]
    (found,) = answer_of(
        (run / "live.html").read_text(),
        """while (!chains.hasEnded) chains.advance();
        return [judge(law, chains.x, chains.sigma, state.denoise).modes[0].share];""",
        tmp_path,
    )
    # 2000 chains each: 99 % of differences of equal shares, in four cases together.
    mean = (share + found) / 2
    assert abs(share - found) < 3.02 * math.sqrt(2 * mean * (1 - mean) / 2000)
