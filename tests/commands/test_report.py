import base64
import html
import http.server
import json
import re
import shutil
import subprocess
import threading
from html.parser import HTMLParser
from urllib.parse import urlsplit

import pytest
from PIL import Image

from ncsn_cli.commands.report import html_report, link, sources_table, tables_of
from ncsn_cli.commands.sources import sources_of

METRICS = {
    "seconds": 12.5,
    "num_samples": 10000,
    "excess_loss": 0.00123456,
    "kl": {"value": 0.25, "standard_error": 0.01},
    "kl_bound": {"visible": 0.31, "total": 0.42},
    "kl_bound_standard_error": 0.013,
    "clean": {"wasserstein": {"value": 0.2, "floor": 0.1, "ratio": 2.0}},
    "perturbed": {"mode_weights": {"value": 0.0, "floor": 0.0, "ratio": None}},
    "sigmas": [2.0, 0.5],
    "score_error_per_level": [0.01, 0.02],
}
FACTS = {
    "title": "ncsn-sample <script>alert(1)</script>",
    "facts": "cpu & more",
    "command": "ncsn-sample 'a=<b>'",
    "changed": {"dataset.weights": [0.3, 0.7], "key": "</td><img src=//evil>"},
}


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.cells = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.cells.append(data.strip())


def page_of(folder, metrics=METRICS):
    text = html_report(folder, **FACTS, tables=tables_of(metrics)).decode()
    return text, Page(text)


def test_the_report_needs_nothing_else(tmp_path):
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "score_norm.png").write_bytes(b"a picture")
    text, page = page_of(tmp_path)
    assert page.open == []
    # What a browser would fetch: only the picture, which is inside.
    (image,) = (attributes for tag, attributes in page.tags if tag == "img")
    kind, _, data = image["src"].partition(",")
    assert kind == "data:image/png;base64"
    assert base64.b64decode(data) == b"a picture"
    assert image["alt"] == "plots/score_norm.png"
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object"}
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL)[1]
    assert "url(" not in style and "@import" not in style


def test_the_report_shows_every_number_beside_its_floor(tmp_path):
    _, page = page_of(tmp_path)
    cells = page.cells
    at = cells.index("wasserstein")
    assert cells[at : at + 4] == ["wasserstein", "0.2", "0.1", "2"]
    at = cells.index("mode_weights")
    assert cells[at : at + 4] == ["mode_weights", "0", "0", "-"]
    assert cells[cells.index("excess_loss") + 1] == "0.001235"
    assert cells[cells.index("num_samples") + 1] == "10000"
    assert cells[cells.index("kl.value") + 1] == "0.25 ± 0.01"
    assert cells[cells.index("kl_bound.visible") + 1] == "0.31 ± 0.013"
    assert cells[cells.index("kl_bound.total") + 1] == "0.42 ± 0.013"
    at = cells.index("sigmas")
    assert cells[at : at + 6] == ["sigmas", "score error", "2", "0.01", "0.5", "0.02"]
    assert cells[cells.index("dataset.weights") + 1] == "[0.3, 0.7]"
    assert cells[cells.index("key") + 1] == "</td><img src=//evil>"


def test_a_report_of_next_to_nothing(tmp_path):
    _, page = page_of(tmp_path, {"seconds": 1.0})
    assert page.cells[:4] == ["number", "value", "seconds", "1"]


def test_a_link_leads_from_one_folder_to_the_other(tmp_path):
    cell = link(
        "1 & 2", tmp_path / "sweep" / "0%25 #1" / "report.html", tmp_path / "compare" / "runs"
    )
    assert cell == '<a href="../../sweep/0%2525%20%231/report.html">1 &amp; 2</a>'
    tables = {"Runs": [["runs"], [cell]]}
    facts = {"title": "t", "facts": "f", "command": "c"}
    page = Page(html_report(tmp_path, **facts, tables=tables).decode())
    assert ("a", {"href": "../../sweep/0%2525%20%231/report.html"}) in page.tags


NAMES = ["chromium", "chromium-browser", "google-chrome"]
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), "")
# What the browser asks for by itself.
ITS_OWN = ("google.com", "googleapis.com", "gstatic.com", "gvt1.com")

# Shows pages in frames of two widths, and says what came of them.
FRAMES = """<body><script>
addEventListener("load", () => {
  const found = [...document.querySelectorAll("iframe")].map(frame => {
    const page = frame.contentDocument, images = [...page.images];
    return {width: page.documentElement.scrollWidth, seen: page.documentElement.clientWidth,
            pictures: images.filter(image => image.naturalWidth > 0).length};
  });
  document.body.innerHTML = "<pre>" + JSON.stringify(found) + "</pre>";
})
</script>"""


@pytest.fixture
def proxy():
    """A proxy that answers nothing, and the list of what it was asked for."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(urlsplit(self.path).hostname or self.path.partition(":")[0])
            self.send_error(404)

        do_CONNECT = do_POST = do_HEAD = do_GET

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port, asked
        server.shutdown()


def in_browser(page, folder, proxy):
    """What is left of ``page`` once its scripts have run, and the hosts it asked for."""
    port, asked = proxy
    asked.clear()
    (folder / "page.html").write_text(page)
    words = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu",
        "--disable-background-networking", "--disable-component-update",
        f"--user-data-dir={folder}/user",
        f"--proxy-server=http://127.0.0.1:{port}", "--virtual-time-budget=5000", "--dump-dom",
        f"file://{folder}/page.html",
    ]  # fmt: skip
    result = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60)
    return result.stdout, {host for host in asked if not host.endswith(ITS_OWN)}


@pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium here")
def test_a_browser_shows_all_of_it_and_asks_nobody(tmp_path, proxy):
    fetching = "<img src=http://example.com/a><img src=https://example.org/b>"
    assert in_browser(fetching, tmp_path, proxy)[1] == {"example.com", "example.org"}
    (tmp_path / "plots").mkdir()
    Image.new("RGB", (2000, 500)).save(tmp_path / "plots" / f"{'long_name' * 20}.png")
    (tmp_path / "animations").mkdir()
    Image.new("RGB", (1104, 688)).save(tmp_path / "animations" / "film.gif")
    long = {f"a_key_that_is_rather_long_{i}": "a/path/that/does/not/end" * 5 for i in range(3)}
    tables = {**tables_of(METRICS), "Wide": [[f"column number {i}" for i in range(30)]] * 2}
    page = html_report(
        tmp_path,
        title="ncsn-train " + "dataset.weights=[0.25,0.25,0.25,0.25]" * 4,
        facts="2026-01-01, cpu",
        command="ncsn-train " + "x" * 500,
        tables=tables,
        changed=long,
    ).decode()
    # Even if it had an image from elsewhere, its policy would keep it from being fetched.
    page = page.replace("</body>", fetching + "</body>")
    frames = "".join(
        f'<iframe width="{width}" height="800" srcdoc="{html.escape(page)}"></iframe>'
        for width in (400, 1280)
    )
    shown, hosts = in_browser(FRAMES + frames, tmp_path, proxy)
    assert hosts == set()
    found = json.loads(re.search("<pre>(.*)</pre>", shown)[1])
    assert len(found) == 2
    for frame in found:
        assert frame["width"] <= frame["seen"]  # nothing to scroll to the side
        assert frame["pictures"] == 2


def test_the_papers_of_each_part_are_named_with_their_addresses(tmp_path):
    config = {
        "seed": 0,
        "sampler": {"_target_": "ncsn_cli.samplers.PredictorCorrector", "snr": 0.16},
        "metric": {"mmd": {"_target_": "ncsn_cli.metrics.MMD"}, "none": None},
        "loss": {"_target_": "someone.elses.Loss"},
        "init": {"_target_": "ncsn_cli.inits.Data"},
    }
    found = sources_of(config)
    assert [*found] == ["sampler", "metric.mmd"]
    address = '<a href="https://arxiv.org/abs/2011.13456">arXiv:2011.13456</a>'
    assert found["sampler"] == f"Song et al. (2021), {address}, algorithms 2 and 4."
    assert found["metric.mmd"] == "Gretton et al. (2012), JMLR 13:723-773, eq. 5."
    page = html_report(tmp_path, **FACTS, tables=sources_table(found)).decode()
    assert "Papers that this run relies on" in page and address in page
    assert sources_table({}) == {}


def test_every_published_part_names_a_paper_that_can_be_found():
    # A name and a year, and an address, a journal or the title in quotes.
    groups = {"sampler": "ProbabilityFlow", "schedule": "Karras", "loss": "Denoising"}
    for group, name in groups.items():
        place = "losses" if group == "loss" else f"{group}s"
        (source,) = sources_of({group: {"_target_": f"ncsn_cli.{place}.{name}"}}).values()
        assert re.search(r"\((19|20)\d\d\)", source) and "https://" in source
