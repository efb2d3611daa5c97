"""Iterated language TD whose look-aheads and held-out positions come from an imported data set."""

from __future__ import annotations

import json

import pytest

from nlrl.envs.breakthrough import Breakthrough
from nlrl.envs.random import Rng
from nlrl.errors import NLRLError
from nlrl.orchestration.authors_data import drawing, serialised
from nlrl.orchestration.checks import check
from nlrl.orchestration.import_nlrl import import_nlrl
from nlrl.orchestration.loop import run
from nlrl.orchestration.run_folder import RunFolder

GAME = Breakthrough(rows=3, columns=3)
SPEC = GAME.spec
OVER = "Terminal State."


def walk(rng, start, moves):
    """A line of random moves in the authors' words."""
    value = {"state": [drawing(GAME, start)], "action": [], "reward": [], "turn": []}
    value["serializad_state"], state = [serialised(GAME, start)], start
    while not GAME.is_terminal(state) and len(value["action"]) < moves:
        action = rng.choice(GAME.legal_actions(state))
        value["action"].append(GAME.action_text(state, action))
        value["turn"].append(state.player)
        state = GAME.apply(state, action).state
        value["reward"].append(list(GAME.returns(state)))
        over = GAME.is_terminal(state)
        value["state"].append(OVER if over else drawing(GAME, state))
        value["serializad_state"].append(OVER if over else serialised(GAME, state))
    turn = None if GAME.is_terminal(state) else state.player
    said = "This is the terminal state." if turn is None else None
    return value | {"final_state": {"state": value["state"][-1], "eval": said, "turn": turn}}


def some_positions(count):
    """Different positions with a move to make."""
    rng, found = Rng("imported"), {}
    while len(found) < count:
        state = GAME.initial_states()[0]
        while not GAME.is_terminal(state) and rng.random() < 0.7:
            state = GAME.apply(state, rng.choice(GAME.legal_actions(state))).state
        if not GAME.is_terminal(state):
            found[state] = None
    return list(found)


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """Two imported folders: look-aheads from 20 positions, and 8 held-out positions, 2 of them among those."""
    place, rng, states = tmp_path_factory.mktemp("imported"), Rng("walks"), some_positions(26)
    aheads = [
        {
            "current_state": drawing(GAME, state),
            "current_serializad_state": serialised(GAME, state),
            "pv": [walk(rng, state, 2) for _ in range(4)],
        }
        for state in states[:20]
    ]
    labels = [
        {"state_turn": [drawing(GAME, state), state.player], "win": "black", "win_rate": 1.0} for state in states[18:]
    ]
    for name, values in (("train", aheads), ("held_out", labels)):
        (place / name).mkdir()
        (place / name / "data.jsonl").write_text("".join(json.dumps(value) + "\n" for value in values))
        assert not import_nlrl(place / name, place / f"our_{name}", SPEC)["refused"]
    return place / "our_train", place / "our_held_out", states


def on(folders, **value_td):
    train, held_out, _ = folders
    td = {"imported": str(train), "imported_held_out": str(held_out), "variations": 2, "collected": 2} | value_td
    return {
        "method": "value_td",
        "iterations": 2,
        "game": {"name": GAME.name, "params": GAME.params},
        "model": {"kind": "scripted", "name": "nlrl.testing.by_game_rules", "options": {"game": SPEC}},
        "value_td": td,
        "evaluation": {"opponents": ["random"], "probes": []},
    }


def test_a_run_learns_imported_look_aheads_and_never_a_held_out_position(imported, small_config, tmp_path):
    folder = RunFolder(run(small_config(tmp_path / "run", **on(imported))).path)
    states = imported[2]
    aheads = list(folder.stage(0, "lookaheads").records())
    assert {GAME.parse_text(record["state"]) for record in aheads} == set(states[:18])
    assert all(1 <= len(record["lines"]) <= 2 for record in aheads)
    given = {r["state"]: [line["actions"] for line in r["lines"]] for r in imported_records(imported)}
    for record in aheads:
        lines = [tuple(line["actions"]) for line in record["lines"]]
        assert len(lines) == len(set(lines))
        assert set(lines) <= {tuple(line) for line in given[record["state"]]}
    targets = list(folder.stage(2, "targets").records())
    assert {record["state"] for record in targets} == {record["state"] for record in aheads}
    asked = {GAME.parse_text(record["state"]) for record in folder.stage(2, "evaluation").records()}
    assert asked == set(states[18:])
    assert {"illegal", "leaks", "claims"} <= folder.stage(2, "evaluation").load()["metrics"]["texts"].keys()
    assert not (tmp_path / "state_sets").exists()  # nothing was played
    assert folder.stage(0, "lookaheads").load()["metrics"]["budget"]["environment_steps"] == 0


def imported_records(imported):
    return [json.loads(line) for line in (imported[0] / "lookaheads.jsonl").read_text().splitlines()]


def test_a_smaller_set_is_part_of_a_larger_one(imported, small_config, tmp_path):
    sets = []
    for count in (5, 12):
        config = small_config(tmp_path / str(count), **on(imported, states={"train": count}) | {"iterations": 1})
        records = RunFolder(run(config).path).stage(0, "lookaheads").records()
        sets.append({record["state"] for record in records})
    assert [len(found) for found in sets] == [5, 12]
    assert sets[0] < sets[1]


def test_what_is_not_there_or_of_another_board_is_refused(imported, small_config, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "lookaheads.jsonl").write_text("")
    for changes, message in (
        ({"imported": str(tmp_path / "nothing")}, r"value_td.imported: there is no .*lookaheads.jsonl; it is made by"),
        ({"imported_held_out": str(tmp_path)}, r"value_td.imported_held_out: there is no .*states.jsonl"),
        ({"imported": str(empty)}, "lookaheads.jsonl is empty"),
    ):
        with pytest.raises(NLRLError, match=message):
            check(small_config(tmp_path / "run", **on(imported, **changes)))
    larger = on(imported) | {"game": {"name": "breakthrough", "params": {"rows": 4, "columns": 3}}}
    with pytest.raises(NLRLError, match=r"is not about breakthrough\(.*rows=4"):
        check(small_config(tmp_path / "run", **larger))
