import base64
import re
from html.parser import HTMLParser

from ncsn_cli.report import html_report

METRICS = {
    "seconds": 12.5,
    "excess_loss": 0.00123456,
    "kl": {"value": 0.25, "standard_error": 0.01},
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
    text = html_report(folder, **FACTS, metrics=metrics).decode()
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
    assert image["alt"] == "score norm"
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
    assert cells[cells.index("kl.value") + 1] == "0.25"
    at = cells.index("sigmas")
    assert cells[at : at + 6] == ["sigmas", "score error", "2", "0.01", "0.5", "0.02"]
    assert cells[cells.index("dataset.weights") + 1] == "[0.3, 0.7]"
    assert cells[cells.index("key") + 1] == "</td><img src=//evil>"


def test_a_report_of_next_to_nothing(tmp_path):
    _, page = page_of(tmp_path, {"seconds": 1.0})
    assert page.cells[:4] == ["number", "value", "seconds", "1"]
