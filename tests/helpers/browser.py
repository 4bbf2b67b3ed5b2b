"""A page in a browser without a screen: Chromium, where there is one."""

import html
import json
import re
import shutil
import subprocess

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="needs Chromium: apt-get install chromium"
)

_REPORT = """
<script>
const answer = document.createElement("pre");
answer.id = "answer";
try {
  answer.textContent = JSON.stringify((() => { %s })());
} catch (error) { answer.textContent = JSON.stringify(String(error.stack)); }
document.body.append(answer);
</script>
</body>"""


def answer_of(page, script, folder, address=""):
    """What ``script``, the body of a function, returns on the ``page`` once it is loaded."""
    path = folder / "page.html"
    path.write_text(page.replace("</body>", _REPORT % script))
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom",
        f"--user-data-dir={folder / 'browser'}", f"{path.as_uri()}{address}",
    ]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    found = re.search(r'<pre id="answer">(.*?)</pre>', result.stdout, re.DOTALL)
    assert found, result.stdout[-2000:] + result.stderr[-2000:]
    return json.loads(html.unescape(found[1]))
