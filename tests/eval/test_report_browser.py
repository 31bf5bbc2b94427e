"""The report in a real browser, without a window or a network. Skipped, visibly, where there is no Chromium."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from eval.report import write_report
from tests.eval.test_report import run  # noqa: F401 - the fixture of a finished run

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: install it to test the report in a browser")

# The report has no script; a page around it looks into its frame once that has loaded.
LOOK = """<body style="margin:0"><iframe id="f" style="border:0" width="%d" height="900" src="%s"></iframe>
<pre id="o"></pre>
<script>document.getElementById("f").onload = e => {
  const page = e.target.contentDocument, root = page.documentElement, of = s => page.querySelectorAll(s);
  const size = n => n.getBoundingClientRect();
  document.getElementById("o").textContent = JSON.stringify({
    wide: root.scrollWidth, tall: root.scrollHeight, dark: getComputedStyle(page.body).backgroundColor,
    outside: [...of("body *")].filter(n => size(n).right > root.clientWidth + 1 && !n.closest(".scroll"))
      .map(n => n.outerHTML.slice(0, 80)),
    small: [...of("main *")].filter(n => n.children.length == 0 && n.textContent.trim() && n.tagName != "title"
      && parseFloat(getComputedStyle(n).fontSize) < 11).map(n => n.textContent),
    curves: [...of(".curve")].map(n => size(n).width)});
};</script>"""


def look(report: Path, folder: Path, width: int, *flags: str) -> dict[str, Any]:
    page = folder / f"look{width}{len(flags)}.html"
    page.write_text(LOOK % (width, report.resolve().as_uri()), encoding="utf-8")
    profile = folder / f"profile{width}{len(flags)}"
    command = [
        str(CHROMIUM),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--no-first-run",
        "--allow-file-access-from-files",
        f"--user-data-dir={profile}",
        "--virtual-time-budget=5000",
        "--window-size=1400,1000",
        "--hide-scrollbars",
        *flags,
        "--dump-dom",
        page.as_uri(),
    ]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    found = re.search(r'<pre id="o">(.+?)</pre>', shown, re.DOTALL)
    assert found, shown[-2000:]
    return dict(json.loads(found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")))


@pytest.mark.parametrize("width", [380, 1200])
def test_nothing_overflows_and_all_text_is_readable(run: Path, tmp_path: Path, width: int) -> None:  # noqa: F811
    seen = look(write_report(run), tmp_path, width)
    assert seen["wide"] == width
    assert seen["tall"] > 1500
    assert seen["outside"] == []
    assert seen["small"] == []
    assert len(seen["curves"]) >= 4
    assert min(seen["curves"]) > 100


def test_dark_mode_is_dark(run: Path, tmp_path: Path) -> None:  # noqa: F811
    report = write_report(run)
    light = look(report, tmp_path, 600)["dark"]
    dark = look(report, tmp_path, 600, "--blink-settings=preferredColorScheme=0")["dark"]
    assert sum(map(int, re.findall(r"\d+", light))) > 600
    assert sum(map(int, re.findall(r"\d+", dark))) < 120
