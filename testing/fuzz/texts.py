"""What models write, read by parsers of moves and verdicts and by metrics."""

from __future__ import annotations

from functools import cache
from typing import Any

from nlrl.agents.endings import last_answer, without_ending
from nlrl.agents.headings import parse_advantage, parse_report, parse_verdict, read_sections
from nlrl.agents.language import language_of
from nlrl.agents.metrics.claims import check_claims
from nlrl.agents.metrics.consistency import check_consistency, stated_number, without_judgements
from nlrl.agents.metrics.leaks import find_leaks, strip_leaks
from nlrl.agents.parser import ParseFailure, parse_choice, parse_evaluation, parse_move
from nlrl.envs import make_from_spec
from nlrl.envs.game import Game
from nlrl.testing.fuzz import holds, target

GAMES = ("tictactoe", "breakthrough(rows=5,columns=5)", "maze(layout=double_t)", "frozen_lake(slippery=False)")
_ENDINGS = ("stop", "length", "error")
_SEEDS = (
    "O holds the centre and wins at 9.\nbest_move: 5",
    "I prefer 5 at +0.58.\nfinal_evaluation: +0.58",
    '<think>maybe 5 or 6</think>```json\n{"thought": ["a", {"b": 1}], "best_move": "a2b3*"}\n```',
    "**best_move**: `move left`, then move right. second_best_move: 3",
    "final_evaluation\uff1a \u22120,5 for O, +0.5 for X; of 8 games O won 5 (62%).",
    "1. **Tactical Considerations**: a2b3* takes.\n2. Positional Evaluation: white has 6 pawns, black 4.\n"
    "3. Suggested Moves: d3e4\n4. Advantage: <white>",
    "The goal is at row 3, column 2, two steps down and one to the right. X is clearly better: +0.80.",
    '{"final_evaluation": [[0.5]], "best_move": null, "best_move": 5}',
    "best_move: best_move: best_move: 5 5 5 5 5 5 5 or 5/5|5&5 -> 5 then 5",
)


def seeds() -> list[bytes]:
    return [text.encode() for text in _SEEDS]


@cache
def positions() -> tuple[tuple[Game[Any], Any], ...]:
    """Of each game its start and a position after a few moves."""
    found = []
    for game in map(make_from_spec, GAMES):
        state = game.initial_states()[0]
        found.append((game, state))
        for _ in range(4):
            action = game.legal_actions(state)[-1]
            state = game.transitions(state, action)[0].state
        if not game.is_terminal(state):
            found.append((game, state))
    return tuple(found)


def text_of(data: bytes) -> str:
    return data.decode("utf-8", "replace")


@target("moves", seeds)
def moves(data: bytes) -> None:
    text = text_of(data)
    for number, (game, state) in enumerate(positions()):
        legal = game.legal_actions(state)
        for parsed in (
            parse_move(text, game, state, _ENDINGS[number % 3]),
            parse_choice(text, legal[:1], game, state),
        ):
            holds(isinstance(parsed, ParseFailure) or parsed in legal, f"{parsed!r} is no legal move of {game.spec}")


@target("verdicts", seeds)
def verdicts(data: bytes) -> None:
    text = text_of(data)
    for ending in _ENDINGS:
        _is_verdict(parse_evaluation(text, ending))
        for game, state in positions():
            _is_verdict(parse_verdict(text, game, state, ending))


def _is_verdict(value: float | ParseFailure) -> None:
    holds(isinstance(value, ParseFailure) or -1 <= value <= 1, f"{value!r} is no verdict")


@target("headings", seeds)
def headings(data: bytes) -> None:
    text = text_of(data)
    read_sections(text)
    for ending in _ENDINGS:
        side = parse_advantage(text, ("black", "white"), ending)
        holds(isinstance(side, ParseFailure) or side in (0, 1), f"{side!r} is no player")
        parse_report(text, ("black", "white"), ending)


@target("claims", seeds, slow=True)
def claims(data: bytes) -> None:
    text = text_of(data)
    for game, state in positions():
        language_of(game)  # registers its claims
        for action in (None, game.legal_actions(state)[0]):
            check_claims(text, game, state, action)


@target("words", seeds, slow=True)
def words(data: bytes) -> None:
    """Judgements, stated numbers and what an answer says before its ending."""
    text = text_of(data)
    last_answer(text)
    without_ending(text)
    for game, state in positions():
        stated_number(text, game, state)
        check_consistency(text, 0.5, game, state)
        without_judgements(text, game)


@target("leaks", seeds)
def leaks(data: bytes) -> None:
    text = text_of(data)
    for leak in find_leaks(text):
        holds(text[slice(*leak.span)] == leak.phrase, f"{leak} is not in the text")
    kept = strip_leaks(text)
    holds(kept is None or not find_leaks(kept), f"{kept!r} still leaks")
