"""The documents: links lead somewhere, generated pages are those of today, the site builds."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("docs/**/*.md"), *ROOT.glob("*.md"), ROOT / "docs/llms.txt"])


def script(name):
    """A script below docs/, as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / f"docs/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        path, _, anchor = target.partition("#")
        if path.startswith("http"):
            continue
        other = page.parent / path if path else page
        assert other.exists(), target
        if anchor and other.suffix == ".md":
            titles = re.findall(r"^#+ (.*)$", other.read_text(), re.MULTILINE)
            assert anchor in {_anchor(title) for title in titles}, target


def _anchor(title):
    return re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-")


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


def test_the_page_of_options_is_that_of_today(tmp_path, monkeypatch):
    options = script("options")
    written = options.PAGE.read_text()
    monkeypatch.setattr(options, "PAGE", tmp_path / "options.md")
    options.main()
    assert options.PAGE.read_text() == written, "run python docs/options.py"


def test_the_live_page_is_that_of_today(tmp_path, monkeypatch):
    live = script("live")
    written = live.PAGE.read_text()
    monkeypatch.setattr(live, "PAGE", tmp_path / "live.html")
    live.main()
    assert live.PAGE.read_text() == written, "run python docs/live.py"


def test_every_page_is_in_the_site():
    listed = re.findall(r"- (\S+\.md)$", (ROOT / ".mkdocs.yml").read_text(), re.MULTILINE)
    pages = {str(page.relative_to(ROOT / "docs")) for page in ROOT.glob("docs/**/*.md")}
    assert set(listed) == pages and len(listed) == len(pages)


SAID = "width  1.23 of the truth  wrong: 44 times the noise"


@pytest.mark.parametrize(
    ("printed", "expected"),
    [
        ("[10:20:30] width 1.23 of the truth wrong: 44 times the noise", True),
        ("width   1.24 of the truth     wrong: 45 times the noise (and more)", True),
        ("width   1.32 of the truth     wrong: 44 times the noise", False),
        ("width   1.23 of the truth     visible", False),
        ("moments 1.23 of the truth     wrong: 44 times the noise", False),
        ("step 5 of 9: width 1.23 of the truth wrong: 44 times the noise", True),
        ("step 1.23 of 44: width 7 of the truth wrong: 9 times the noise", False),
        ("width   1.23 of the truth     wrong: 46 times the noise", False),
    ],
)
def test_what_a_page_says_is_compared_in_words_and_numbers(printed, expected):
    assert script("check").agrees(SAID, printed) is expected


def test_the_check_runs_a_pages_blocks_in_order_and_names_what_differs(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# A page\n\n```python\n# made.py\nprint('it is 3.14')\n```\n\n"
        f"```sh\n{sys.executable} made.py\n```\n\n    it is 3.15\n\ntext\n\n"
        f"```sh\n{sys.executable} made.py\n```\n\n    it is 2.7\n\n"
        "```sh\nncsn-measure FILE\n```\n\n<!-- docs-check: 3 minutes -->\n```sh\nfalse\n```\n\n"
        "```sh\nfalse\n```\n"
    )
    first, second = script("check").check(page)
    assert first.endswith("is not printed: it is 2.7") and "false: exit 1" in second


METRICS = [{"loss": 0.5, "per_level": [[1.0, 2.0], [3.0, 4.0]]}, {"loss": -0.75}]


@pytest.mark.parametrize(
    ("note", "row", "expected"),
    [
        ("rows loss", "| name 7 | .5 (of 8) | -.75 ± .1 | 9 |", []),
        ("rows loss 2 1", "| name | -.75 | .50 |", []),
        ("rows per_level.*.1", "| name | 2 | 4 |", []),
        ("rows loss", "| name | .53 | -.75 |", ["loss is 0.5, -0.75, not .53 -.75"]),
        ("rows loss", "| name | .5 |", ["loss is 0.5, -0.75, not .5"]),
        ("rows other", "| name | .5 |", ["other is nothing, not .5"]),
        ("columns loss 1; -", "| name | .5 | 7 |", []),
        ("columns -; loss 1", "| name | .5 | 7 |", ["loss 1 is 0.5, not 7"]),
    ],
)
def test_a_table_is_compared_with_the_metrics_that_its_comment_names(note, row, expected):
    check = script("check")
    output = check.Output("a command", 0, [], METRICS)
    width = row.count("|") - 1
    table = "| title " * width + "|\n" + "|---" * width + f"|\n{row}\n"
    assert [*check.other_metrics(note, table, output)] == expected


def test_a_table_without_a_comment_is_compared_with_the_printed_rows():
    check = script("check")
    output = check.Output("a command", 0, ["| `a` | 0.41 |", "| b | 3 |"], [])
    table = "| x | y |\n|---|---|\n| `a` | **0.41** |\n| b | 9 |\n"
    assert [*check.missing_rows(table, output)] == ["is not printed: | b | 9 |"]


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    words = ["-m", "mkdocs", "build", "--strict", "-f", ROOT / ".mkdocs.yml", "-d", tmp_path]
    environment = {"NO_MKDOCS_2_WARNING": "1", "PATH": "", "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, check=False, env=environment
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert (tmp_path / "learn/first_ten_minutes.html").exists()


@pytest.mark.slow
@pytest.mark.parametrize("page", ["docs/learn/first_ten_minutes.md", "docs/how_to/own_mixture.md"])
def test_pages_agree_with_what_their_commands_print(page, monkeypatch):
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=":")
    assert script("check").check(ROOT / page) == []
