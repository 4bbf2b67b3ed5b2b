"""Frames a second of the live page, in Chromium without a screen.

    python benchmarks/live.py [PAGE ...]

Opens ``docs/live.html`` at several addresses, and each PAGE (a run's ``live.html``) as it is, lets
2000 particles run, and counts the frames and the sampler's steps of three seconds, three times.
Nothing is asserted.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

DOCS = Path(__file__).resolve().parents[1] / "docs" / "live.html"
ADDRESSES = [
    "#num=2000", "#num=2000&law=two_modes_1d&max=10", "#num=2000&law=grid_2d",
    "#num=2000&law=moons_2d", "#num=2000&score=empirical&points=1000",
]  # fmt: skip
COUNT = """
<script>
{ let frames = 0, start = 0, made = 0;
  const count = (now) => {
    if (start === 0 && chains.made > 0) [start, made] = [now, chains.made];
    if (start > 0) frames += 1;
    if (start > 0 && (now > start + 3000 || chains.hasEnded))
      fetch("/counted", { method: "POST", body: JSON.stringify(
        [frames / (now - start) * 1000, (chains.made - made) / (now - start) * 1000]) });
    else requestAnimationFrame(count);
  };
  state.steps = 2000;
  restart();
  find("#run").click();
  requestAnimationFrame(count); }
</script></body>"""


def counted(page: Path, address: str) -> list[float]:
    """Return frames and steps a second of the page."""
    text = page.read_text().replace("</body>", COUNT).replace("default-src 'none'", "")
    found: list[list[float]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(text.encode())

        def do_POST(self) -> None:
            found.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Be silent."""

    with (
        HTTPServer(("127.0.0.1", 0), Handler) as server,
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile,
        subprocess.Popen(
            [
                "chromium", "--headless", "--no-sandbox", "--disable-gpu",
                "--remote-debugging-port=0", f"--user-data-dir={profile}",
                "--window-size=1280,900", f"http://127.0.0.1:{server.server_port}/{address}",
            ],
            stderr=subprocess.DEVNULL,
        ) as browser,
    ):  # fmt: skip
        try:
            while not found:
                server.handle_request()
        finally:
            browser.kill()
    return found[0]


def main() -> None:
    """Print the table."""
    if shutil.which("chromium") is None:
        sys.exit("needs chromium: apt-get install chromium")
    cases = [(DOCS, address) for address in ADDRESSES]
    cases += [(Path(name), "#num=2000") for name in sys.argv[1:]]
    print("| page | frames a second | steps a second |\n|---|---|---|")
    for page, address in cases:
        runs = [counted(page, address) for _ in range(3)]
        frames, steps = (statistics.median(column) for column in zip(*runs, strict=True))
        print(f"| `{page.name}{address}` | {frames:.0f} | {steps:.0f} |", flush=True)


if __name__ == "__main__":
    main()
