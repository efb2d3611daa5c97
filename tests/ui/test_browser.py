"""The viewer in a real browser: Debian's chromium, driven by selenium. Skipped where one of them is missing.

With NLRL_SCREENSHOTS=FOLDER the pictures of the README are taken, of the run that is shipped.
"""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from urllib.parse import quote

import pytest

from nlrl.benchmarks.viewer_step import open_browser, served, steps

from .replayed import KEY, write_played

selenium = pytest.importorskip("selenium")
pytestmark = pytest.mark.skipif(
    not (shutil.which("chromium") and shutil.which("chromedriver")),
    reason="chromium and chromium-driver are not both here",
)
PATIENCE = 45
"""Seconds for anything to appear; two cores may be busy."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    write_played(folder / "run")
    return folder


@pytest.fixture(scope="module")
def viewer(folder):
    """The address of the viewer on the folder of runs."""
    with served(folder) as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    driver = open_browser()
    yield driver
    driver.quit()


def wait_for(condition):
    """What a condition returns once it is true; it may raise until then."""
    deadline, last = time.monotonic() + PATIENCE, None
    while time.monotonic() < deadline:
        try:
            if found := condition():
                return found
        except Exception as error:
            last = error
        time.sleep(0.05)
    raise AssertionError(f"nothing appeared within {PATIENCE} s; last error: {last}")


def words(browser) -> str:
    return browser.find_element("tag name", "body").text


def see(browser, text: str) -> None:
    wait_for(lambda: text in words(browser))


def button(browser, label: str):
    path = f"//button[not(@disabled)][.//*[starts-with(normalize-space(), '{label}')]]"
    return wait_for(lambda: browser.find_element("xpath", path))


def field(browser, label: str):
    return wait_for(lambda: browser.find_element("xpath", f"//input[@aria-label='{label}']"))


def press(browser, key: str) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    ActionChains(browser).send_keys(key).perform()


def test_the_first_page_lists_the_runs(viewer, browser):
    browser.get(viewer)
    see(browser, "Runs under")
    see(browser, "No metrics yet")


def test_games_are_filtered_by_their_words(viewer, browser):
    from selenium.webdriver.common.keys import Keys

    browser.get(f"{viewer}/games?run=run")
    see(browser, "2 games on 1 page")
    field(browser, "Replies that contain").send_keys("never said by anybody", Keys.ENTER)
    see(browser, "No game passes these filters.")


def test_a_game_is_stepped_through_by_keys_and_the_address_follows(viewer, browser):
    from selenium.webdriver.common.keys import Keys

    browser.get(f"{viewer}/replay?run=run&stage={quote('001/rollout')}&game={KEY}")
    see(browser, "Move 1, O (policy): 5")
    button(browser, "Next")
    see(browser, "Open in the lab")  # the last of the page: its keys are listened to
    press(browser, Keys.ARROW_RIGHT)
    see(browser, "Move 2, X (random): 2")
    assert "ply=1" in wait_for(lambda: "ply" in browser.current_url and browser.current_url)
    see(browser, "Blunder: 1, 3, 7 and 9 were best.")
    button(browser, "Last").click()
    see(browser, "After 9 moves: draw for O")


def test_what_a_model_wrote_stays_text(viewer, browser):
    from selenium.common.exceptions import NoAlertPresentException

    browser.get(f"{viewer}/replay?run=run&stage={quote('001/rollout')}&game={KEY}")
    see(browser, "<script>alert(1)</script>")
    assert not browser.find_elements("css selector", "img[src='x'], a[href*='evil.test']")
    with pytest.raises(NoAlertPresentException):
        browser.switch_to.alert.accept()


def test_a_position_branches_in_the_lab(viewer, browser):
    browser.get(f"{viewer}/replay?run=run&stage={quote('001/rollout')}&game={KEY}&ply=2")
    button(browser, "Open in the lab").click()
    see(browser, "Take back")
    assert "/lab" in browser.current_url
    button(browser, "Try it").click()
    button(browser, "Take back")  # it can be taken back now


def test_a_person_plays_a_move_and_is_answered(viewer, browser):
    browser.get(f"{viewer}/play")
    see(browser, "Against")
    button(browser, "Start").click()
    see(browser, "Your move, O.")
    button(browser, "Play it").click()
    see(browser, "Move 2:")


def test_steps_are_timed_by_the_page_itself(viewer, browser):
    taken = steps(browser, viewer, rounds=1)
    assert len(taken) > 3
    assert min(taken) > 0


@pytest.mark.skipif("NLRL_SCREENSHOTS" not in os.environ, reason="no pictures wanted")
def test_pictures_for_the_readme(browser):
    out = Path(os.environ["NLRL_SCREENSHOTS"])
    address = os.environ["NLRL_VIEWER"]
    for name, path, seen in (
        ("learning", "learning", "Exploitability"),
        ("games", "games", "games on"),
        ("replay", f"replay?{os.environ['NLRL_GAME']}", "Beside the moves"),
        ("lab", f"lab?{os.environ['NLRL_GAME']}", "Try it"),
    ):
        browser.get(f"{address}/{path}")
        see(browser, seen)
        time.sleep(3)  # charts draw themselves later
        browser.save_screenshot(str(out / f"viewer_{name}.png"))
