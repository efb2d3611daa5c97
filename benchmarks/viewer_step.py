"""The viewer's next move, timed in a browser: `nlrl bench viewer_step -- RUNS`, or `python -m` of this module.

A headless chromium opens the first game of the newest stage on the Replay page, and a script in the page presses "Next"
and waits until the title above the board and a picture have both changed. The time is the page's own clock, from the
press to the first frame that shows the new position; what the browser's driver takes is not in it. Needs chromium, its
driver and selenium.
"""

from __future__ import annotations

import argparse
import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any
from urllib.request import urlopen

from nlrl.benchmarks.figures import machine
from nlrl.errors import NLRLError

TARGET = 150
"""Milliseconds, of the median."""
PATIENCE = 60
STEP = """
const done = arguments[arguments.length - 1];
const shown = () => [...document.querySelectorAll('strong')].map(e => e.innerText).join('|');
const board = () => [...document.querySelectorAll('img')].map(e => e.src.length + e.src.slice(-400)).join('|');
const before = [shown(), board()], began = performance.now();
const find = name => [...document.querySelectorAll('button')].find(b => b.innerText.startsWith(name) && !b.disabled);
const next = find('Next');
if (!next || next.innerText.startsWith('Next ??')) { done(null); return; }
next.click();
const look = () => shown() !== before[0] && board() !== before[1] ? done(performance.now() - began)
    : performance.now() - began > 20000 ? done(-1) : requestAnimationFrame(look);
requestAnimationFrame(look);
"""


@contextmanager
def served(runs: Path) -> Iterator[str]:
    """The address of a viewer on a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "nlrl.orchestration.cli", "view", str(runs), "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_for(f"http://127.0.0.1:{port}/_stcore/health")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def _wait_for(url: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            with urlopen(url, timeout=2):
                return
        except OSError:
            if time.monotonic() > deadline:
                raise NLRLError(f"the viewer did not answer at {url} within {PATIENCE} s") from None
            time.sleep(0.1)


def open_browser() -> Any:
    """Raises: NLRLError: chromium, its driver or selenium is missing."""
    try:
        from selenium import webdriver
    except ImportError:
        raise NLRLError("selenium is not installed: pip install 'nlrl[dev]'") from None
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        raise NLRLError("chromium and chromedriver are not both here (on Debian: apt install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "window-size=1500,1500"):
        options.add_argument(f"--{flag}")
    options.binary_location = chromium
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))


def steps(browser: Any, address: str, rounds: int) -> list[float]:
    """Milliseconds of each step of a game, which is opened `rounds` times; the first step of each is left out."""
    found = []
    for _ in range(rounds):
        browser.get(f"{address}/replay")
        deadline = time.monotonic() + PATIENCE
        while "Open in the lab" not in browser.find_element("tag name", "body").text:
            if time.monotonic() > deadline:
                raise NLRLError("the Replay page did not show a game")
            time.sleep(0.2)
        time.sleep(1)  # charts draw themselves later
        game = []
        while (taken := browser.execute_async_script(STEP)) is not None:
            if taken < 0:
                raise NLRLError("a step took more than 20 s")
            game.append(taken)
            time.sleep(0.3)
        found += game[1:]
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, help="a folder of runs")
    parser.add_argument("--rounds", type=int, default=5, help="games stepped through")
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args(argv)
    with served(args.runs) as address:
        browser = open_browser()
        browser.set_script_timeout(30)
        try:
            taken = steps(browser, address, args.rounds)
        finally:
            browser.quit()
    if not taken:
        raise NLRLError(f"{args.runs}: no game there has two moves")
    middle = median(taken)
    verdict = "met" if middle < TARGET else "MISSED"
    spread = f"{len(taken)} steps ({min(taken):.0f} to {max(taken):.0f})"
    print(f"next move: median {middle:.0f} ms of {spread}; under {TARGET}: {verdict}")
    if args.json:
        fields = {"machine": machine(), "milliseconds": [round(ms, 1) for ms in taken], "median": round(middle, 1)}
        args.json.write_text(json.dumps(fields) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
