"""A game as one HTML file: boards, both values, what was said, and buttons to step through it.

The file asks nobody for anything: pictures are inside it, its policy lets it load nothing and run no script but its
own, which is named by its hash. Texts are escaped; control characters are shown as signs.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from html import escape

from nlrl.orchestration.config import RunConfig
from nlrl.ui import pictures, tables
from nlrl.ui.cards import Card, Improvement, claims_line, make_card
from nlrl.ui.replay import Replay
from nlrl.ui.said import NEAREST

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")

_BUTTONS = {"first": "|◀", "back": "◀", "play": "play", "next": "▶", "last": "▶|"}
_STYLE = """
:root { color-scheme: light dark; font-family: system-ui, sans-serif; line-height: 1.4 }
body { max-width: 72rem; margin: 1rem auto; padding: 0 1rem }
.ply { display: flex; flex-wrap: wrap; gap: 1.5rem; border-top: 1px solid #8a8a8a; padding-top: 1rem }
.ply > div { flex: 1 1 20rem; min-width: 0 }
.stepped .ply { display: none } .stepped .ply.now { display: flex }
nav { display: none; gap: .5rem; margin: 1rem 0 } .stepped nav { display: flex }
nav input { flex: 1 }
pre { white-space: pre-wrap; overflow-wrap: anywhere; border-left: 3px solid #8a8a8a; padding-left: .6rem }
table { border-collapse: collapse } td, th { padding: .1rem .6rem; text-align: left; vertical-align: top }
img { max-width: 100%; margin-right: 1rem }
"""

_SCRIPT = """
const plies = [...document.querySelectorAll(".ply")], range = document.querySelector("nav input");
let now = 0, timer = null;
function go(ply) {
  now = Math.max(0, Math.min(plies.length - 1, ply));
  plies.forEach((one, at) => one.classList.toggle("now", at === now));
  range.value = now;
  if (now === plies.length - 1) stop();
}
function stop() { clearInterval(timer); timer = null; }
function play() {
  if (timer) return stop();
  if (now === plies.length - 1) go(0);
  timer = setInterval(() => go(now + 1), 1000);
}
const last = () => go(plies.length - 1);
const does = { first: () => go(0), back: () => go(now - 1), next: () => go(now + 1), last, play };
const keys = { Home: "first", ArrowLeft: "back", ArrowRight: "next", End: "last", " ": "play" };
document.querySelectorAll("nav button").forEach(one => one.addEventListener("click", () => does[one.dataset.does]()));
range.addEventListener("input", () => go(Number(range.value)));
document.addEventListener("keydown", event => {
  if (event.target.matches("summary, button, input") && event.key === " ") return;
  if (event.target === range || !(event.key in keys)) return;
  event.preventDefault();
  does[keys[event.key]]();
});
document.body.classList.add("stepped");
go(Number((location.hash.match(/^#ply=(\\d+)$/) || [0, 0])[1]));
"""


def export_html(replay: Replay, config: RunConfig | None = None, source: str = NEAREST) -> str:
    """The whole file.

    Args:
        config: of the run, for prompts.
        source: of the values in texts, one of `pictures.SOURCE_CHOICES`.
    """
    title = f"{replay.game.spec}: {replay.result}"
    people = " against ".join(replay.player_of(player) for player in range(replay.game.num_players))
    plies = "\n".join(_ply(replay, ply.number, config, source) for ply in replay.plies)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_policy()}">
<meta name="viewport" content="width=device-width">
<title>{text(title)}</title><style>{_STYLE}</style></head>
<body><h1>{text(title)}</h1><p>{text(people)}</p>
{_summary(replay)}
<p>{_image(pictures.chart(replay, source), "values over the plies")}<br>
Solid with dots: exact value of best play; dashed with squares: value in the text ({text(source)}). Both from the view
of {text(replay.game.player_names[0])}.</p>
<nav>{"".join(_button(does, label) for does, label in _BUTTONS.items())}
<input type="range" min="0" max="{len(replay.plies) - 1}" value="0" aria-label="ply"></nav>
{plies}
<script>{_SCRIPT}</script></body></html>
"""


def file_name(replay: Replay) -> str:
    """A name for the file, of letters that every system allows."""
    key = re.sub(r"[^A-Za-z0-9]", "", str(replay.record.get("key", "")))[:12]
    return f"{replay.game.name}-{key or 'game'}.html"


def text(value: object) -> str:
    """Escaped, with control and direction characters as visible signs."""
    return escape(_CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", str(value)))


def _policy() -> str:
    digest = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
    return f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def _image(svg: str, alt: str) -> str:
    encoded = base64.b64encode(svg.encode()).decode()
    return f'<img alt="{text(alt)}" src="data:image/svg+xml;base64,{encoded}">'


def _button(does: str, label: str) -> str:
    return f'<button type="button" data-does="{does}">{label}</button>'


def _summary(replay: Replay) -> str:
    lines = [tables.accuracy_line(replay.player_of(p), replay.accuracy(p)) for p in range(replay.game.num_players)]
    lines += [f"The game is {replay.problem}"] if replay.problem else []
    lines += [f"Some exact values are unknown: {reason}" for reason in replay.reasons]
    return "".join(f"<p>{text(line)}</p>" for line in lines)


def _ply(replay: Replay, number: int, config: RunConfig | None, source: str) -> str:
    one = replay.plies[number]
    judged = f"<p>{text(one.judgement.sentence)}</p>" if one.judgement else ""
    gauges = "".join(_image(picture, "gauge") for picture in pictures.gauges(replay, number, source))
    return f"""<section class="ply" id="ply-{number}"><div><h2>{text(replay.title(number))}</h2>
{_image(pictures.board(replay, number), "board")}{judged}{gauges}{_table(tables.tablebase(replay, number))}</div>
<div>{_card(make_card(replay, number, config))}</div></section>"""


def _card(card: Card) -> str:
    parts = []
    if card.facts:
        parts.append(f"<p>{text(' · '.join(f'{name}: {value}' for name, value in card.facts.items()))}</p>")
    if card.reply:
        parts.append(f"<h3>Answer</h3><pre>{text(card.reply)}</pre><p>{text(claims_line(card.claims))}</p>")
        parts.append(f"<p>Parsed move: {text(card.parsed)}</p>")
    if card.evaluation:
        parts.append(f"<h3>Its evaluation</h3><pre>{text(card.evaluation)}</pre>")
    if card.prompt:
        parts.append(_folded("Prompt", "\n\n".join(f"{m.role}: {m.content}" for m in card.prompt)))
    parts += [_improvement(found) for found in card.improvements]
    if card.look_aheads:
        parts.append(_folded("Look-aheads for G2", "\n".join(card.look_aheads)))
    parts += [
        _folded(f"G1 about {merge.about}", "\n".join((*merge.inputs, "", merge.output, claims_line(merge.claims))))
        for merge in card.merges
    ]
    return "".join(parts)


def _improvement(found: Improvement) -> str:
    rows = [
        {
            "move": one.move,
            "critic": f"{one.verdict:+.2f}",
            "exact": tables.shown(one.exact),
            "evaluation": one.text,
            "claims": claims_line(one.claims),
        }
        for one in found.candidates
    ]
    chosen = f"<pre>{text(found.text)}</pre>" if found.text else ""
    return f"<h3>Candidates; I chose {text(found.chosen or 'nothing')}</h3>{_table(rows)}{chosen}"


def _folded(title: str, content: str) -> str:
    return f"<details><summary>{text(title)}</summary><pre>{text(content)}</pre></details>"


def _table(rows: Sequence[dict[str, str]]) -> str:
    if not rows:
        return ""
    head = "".join(f"<th>{text(name)}</th>" for name in rows[0])
    body = "".join(f"<tr>{''.join(f'<td>{text(value)}</td>' for value in row.values())}</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"
