"""A run as a static page."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from nlrl.errors import NLRLError
from nlrl.orchestration.cli import run_cli
from nlrl.testing import write_run
from nlrl.ui import library
from nlrl.ui.report import figures, page, picture, static_page, write_report

from .shelf import CHOICES, EVIL, GAMES, METRICS, config


class Tags(HTMLParser):
    """The tags of a page and their attributes."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(
        tmp_path_factory.mktemp("runs") / "<b>run",
        config=config() + f"note = '''{EVIL.replace(chr(27), '')}'''\n",
        metrics=METRICS,
        diary=f"# Diary\n{EVIL}\n",
        records={**GAMES, "001/improvement": CHOICES},
    )


@pytest.fixture(scope="module")
def written(run, tmp_path_factory):
    return write_report(run, tmp_path_factory.mktemp("report") / "new")


def test_a_report_is_one_page_and_its_figures_as_files(run, written):
    names = {figure.name for figure in figures(library.read_run("run", run))}
    assert {
        "win_rate_exact",
        "win_rate_greedy",
        "exploitability",
        "ratings",
        "brier_by_phase",
        "spent_seconds",
    } <= names
    assert {file.name for file in written.parent.iterdir()} == {
        "index.html",
        *(f"{name}.{form}" for name in names for form in ("svg", "png")),
    }
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in written.parent.glob("*.png"))
    assert all(ElementTree.parse(file).getroot().tag.endswith("svg") for file in written.parent.glob("*.svg"))


def test_the_page_fetches_nothing_and_runs_nothing(written):
    text = written.read_text()
    tags = Tags(text).found
    assert "<h1>&lt;b&gt;run</h1>" in text
    assert not {"script", "img", "image", "iframe", "link", "a", "b", "object", "foreignobject"} & {
        tag for tag, _ in tags
    }
    named = {name for _, attributes in tags for name in attributes}
    assert not {name for name in named if name.startswith("on") or name in ("src", "href", "xlink:href")}
    assert not re.search(r"url\(\s*['\"]?(?!#)", text)
    assert "\x1b" not in text
    assert "default-src 'none'" in text


def test_the_page_has_the_results_with_intervals_and_the_optimum(run, written):
    text = written.read_text()
    assert static_page(library.read_run(run.name, run)).decode().count("<svg") == text.count("<svg")
    assert "0.740 [0.690, 0.790]" in text
    assert "best against random: 0.967" in text
    assert "DROP TABLE" in text  # the diary is there, as text


def test_an_empty_and_a_torn_run_have_a_page_too(tmp_path):
    for name, torn in (("empty", False), ("torn", True)):
        run = write_run(tmp_path / name, config=config(), metrics=METRICS if torn else ())
        if torn:
            (run / "metrics.jsonl").write_text("torn\n" + (run / "metrics.jsonl").read_text())
        found = library.read_run(name, run)
        assert figures(found) == []
        assert ("metrics.jsonl, line 1" if torn else "No metrics yet") in page(found, [])


def test_figures_do_on_light_and_dark_pages(run):
    figure = figures(library.read_run("run", run))[0]
    svg = picture(figure.chart, "svg").decode()
    colours = {colour.lower() for colour in re.findall(r'(?:fill|stroke)="(#[0-9a-fA-F]{6}|black|white)"', svg)}
    assert not colours & {"#000000", "#ffffff", "black", "white"}


def test_report_writes_the_page_where_it_is_told(tmp_path, capsys):
    run = write_run(tmp_path / "run", config=config())
    assert run_cli(["report", str(run), "--out", str(tmp_path / "page")]) == 0
    assert "page/index.html" in capsys.readouterr().out
    assert "No metrics yet" in (tmp_path / "page" / "index.html").read_text()


def test_what_is_no_run_or_cannot_be_written_is_refused(tmp_path):
    with pytest.raises(NLRLError, match=r"no config\.toml"):
        write_report(tmp_path, tmp_path / "out")
    run = write_run(tmp_path / "run", config=config())
    (tmp_path / "file").write_text("")
    with pytest.raises(NLRLError, match="cannot be written"):
        write_report(run, tmp_path / "file" / "out")
