"""Data that others wrote: the authors' games, corpora, tables of solved positions, sets of positions."""

from __future__ import annotations

from functools import cache

import orjson

from nlrl.backbones.packing import TokenExample
from nlrl.backbones.token_file import read_examples, write_part
from nlrl.envs.breakthrough import Breakthrough
from nlrl.envs.breakthrough.table import load_table, new_table, save_table
from nlrl.errors import NLRLError
from nlrl.orchestration.authors_data import serialised
from nlrl.orchestration.import_nlrl import Importer
from nlrl.testing.fuzz import holds, target
from nlrl.testing.fuzz.folders import file_with, folder


@cache
def _board() -> Breakthrough:
    return Breakthrough(rows=5, columns=5)


def _authors_lines() -> list[bytes]:
    game = _board()
    state = game.initial_states()[0]
    move = game.legal_actions(state)[0]
    after = game.apply(state, move).state
    here, there = serialised(game, state), serialised(game, after)
    drawing = "5bbbbb\n4bbbbb\n3.....\n2wwwww\n1wwwww\n abcde\n"
    line = {
        "serializad_state": [here, there],
        "action": [game.action_text(state, move)],
        "turn": [0],
        "reward": [[0, 0]],
    }
    chat = [
        {"role": "user", "content": f"{drawing} It is Black's turn"},
        {"role": "assistant", "content": "Advantage: <black>"},
    ]
    values = (
        {"serializad_state": here},
        {"state_turn": [drawing, 0], "win": 3, "win_rate": 0.5},
        line | {"state": [drawing]},
        {
            "current_state": [drawing, 0],
            "current_serializad_state": here,
            "pv": [line | {"final_state": {"state": drawing, "turn": 1}}],
        },
        chat,
        {"raw_data": {"current_serializad_state": here}, "prompt": chat},
    )
    return [orjson.dumps(value) for value in values]


@target("authors' data", _authors_lines)
def authors_data(data: bytes) -> None:
    """Every line is kept or refused with a reason; none stops the import."""
    for suffix in (".jsonl", ".json"):
        importer = Importer(_board(), "ours", "instruct")
        importer.read(file_with(data, f"authors{suffix}"), "file")
        orjson.dumps(importer.report())


def _corpora() -> list[bytes]:
    path = folder("corpora") / "seed.npz"
    write_part(path, [TokenExample((1, 2, 3), (4, 5)), TokenExample((6,), (7, 8, 9))])
    return [path.read_bytes()]


@target("corpora", _corpora, NLRLError)
def corpora(data: bytes) -> None:
    for example in read_examples(file_with(data, "corpus.npz")):
        holds(all(isinstance(token, int) for token in example.prompt + example.completion), "a token is no number")


def _solved() -> list[bytes]:
    path = folder("solved") / "seed.table"
    save_table(path, new_table(2, 3), 2, 3)
    return [path.read_bytes()]


@target("solved positions", _solved, NLRLError)
def solved_positions(data: bytes) -> None:
    load_table(file_with(data, "solved.table"), 2, 3)


@target("sets of positions", lambda: [b'{"states": ["a"], "games": 1, "plies": 2}'], NLRLError)
def state_sets(data: bytes) -> None:
    from nlrl.orchestration.state_sets import _read

    _read(file_with(data, "states.json"))
