"""The authors' Breakthrough data, as small files of their formats that are made here."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from nlrl.agents.roles import Roles, StateInput
from nlrl.envs import make, make_from_spec
from nlrl.envs.random import Rng
from nlrl.errors import NLRLError
from nlrl.orchestration.authors_data import AuthorsData, Unfit, drawing, serialised
from nlrl.orchestration.cli import run_cli
from nlrl.orchestration.import_nlrl import examples, import_nlrl
from nlrl.orchestration.lines import line_of_record
from nlrl.orchestration.records import read_records

GAME = make("breakthrough")
SPEC = GAME.spec
START = GAME.initial_states()[0]
OVER = "Terminal State."
SAID = """1. *Tactical Considerations*: nothing can be captured.
2. *Positional Evaluation*: both sides have their pawns.
3. *Suggested Moves*: a step ahead in the centre.
4. *Advantage*: I prefer <{}>."""


def play(seed: int, moves: int | None = None, start: Any = START) -> dict[str, Any]:
    """A random game in the authors' words."""
    rng, state = Rng("their game", seed), start
    value: dict[str, Any] = {"state": [drawing(GAME, state)], "action": [], "reward": [], "turn": []}
    value["serializad_state"] = [serialised(GAME, state)]
    while not GAME.is_terminal(state) and len(value["action"]) != moves:
        action = rng.choice(GAME.legal_actions(state))
        value["action"].append(GAME.action_text(state, action))
        value["turn"].append(state.player)
        state = GAME.apply(state, action).state
        value["reward"].append(list(GAME.returns(state)))
        over = GAME.is_terminal(state)
        value["state"].append(OVER if over else drawing(GAME, state))
        value["serializad_state"].append(OVER if over else serialised(GAME, state))
    return value


def piece(seed: int, moves: int, evaluation: str | None, start: Any = START) -> dict[str, Any]:
    value = play(seed, moves, start)
    if value["state"][-1] == OVER:
        return value | {"final_state": {"state": OVER, "eval": "This is the terminal state.", "turn": None}}
    turn = int(value["serializad_state"][-1][-1])
    return value | {"final_state": {"state": value["state"][-1], "eval": evaluation, "turn": turn}}


def look_ahead(seed: int, evaluation: str | None = None) -> dict[str, Any]:
    pieces = [piece(seed + i, 4, evaluation) for i in range(2)]
    return {"current_state": drawing(GAME, START), "current_serializad_state": serialised(GAME, START), "pv": pieces}


def label(black: float, moves: int = 3) -> dict[str, Any]:
    value = play(1, moves)
    turn = int(value["serializad_state"][-1][-1])
    side = "black" if black >= 0 else "white"
    return {"state_turn": [value["state"][-1], turn], "win": side, "win_rate": black}


def chat(side: str = "white", moves: int = 5) -> list[dict[str, str]]:
    value = play(2, moves)
    name = ("Black", "White")[int(value["serializad_state"][-1][-1])]
    asked = f"*Judge this board:*\n{value['state'][-1]}\n It is {name}'s turn.\n"
    return [
        {"role": "system", "content": "You judge boards."},
        {"role": "user", "content": asked},
        {"role": "assistant", "content": SAID.format(side)},
    ]


def write(folder: Path, **files: list[Any]) -> Path:
    for name, values in files.items():
        folder.mkdir(parents=True, exist_ok=True)
        text = "".join((value if isinstance(value, str) else json.dumps(value)) + "\n" for value in values)
        (folder / f"{name}.jsonl").write_text(text)
    return folder


def records(out: Path, name: str) -> list[dict[str, Any]]:
    return list(read_records(out / f"{name}.jsonl"))


def refused(value: Any, tmp_path: Path) -> dict[str, int]:
    """Why a value is refused, beside one that is not."""
    data = write(tmp_path / "data", lines=[value, {"serializad_state": serialised(GAME, START)}])
    return import_nlrl(data, tmp_path / "out", SPEC)["refused"]


# --- their notation


def test_the_notation_is_that_of_their_files():
    assert serialised(GAME, START) == "bbbbbbbbbb.....wwwwwwwwww0"
    assert drawing(GAME, START) == "5bbbbb\n4bbbbb\n3.....\n2wwwww\n1wwwww\n abcde\n"


def test_drawings_and_moves_are_those_of_openspiel():
    """On the smallest board with two rows of pawns that OpenSpiel has as it is."""
    pyspiel = pytest.importorskip("pyspiel")
    game, theirs = make_from_spec("breakthrough(rows=6,columns=6)"), pyspiel.load_game("breakthrough(rows=6,columns=6)")
    data, state, position, rng = AuthorsData(game), game.initial_states()[0], theirs.new_initial_state(), Rng("spiel")
    while not game.is_terminal(state):
        assert drawing(game, state) == position.observation_string()
        assert data.drawn(position.observation_string(), position.current_player()) == state
        action = rng.choice(game.legal_actions(state))
        text = game.action_text(state, action)
        position.apply_action(position.string_to_action(text))
        state = game.apply(state, action).state
    assert position.is_terminal()


def test_every_position_is_read_back():
    data = AuthorsData(GAME)
    for seed in range(5):
        value = play(seed)
        for shown, cells in zip(value["state"][:-1], value["serializad_state"][:-1], strict=True):
            state = data.position(cells)
            assert data.drawn(shown, int(cells[-1])) == state
            assert (drawing(GAME, state), serialised(GAME, state)) == (shown, cells)


# --- what becomes of it


def test_games_become_games(tmp_path):
    values = [play(seed) for seed in range(6)]
    report = import_nlrl(write(tmp_path / "data", replay_buffer=values), tmp_path / "out", SPEC)
    found = records(tmp_path / "out", "games")
    assert report["kept"]["game"] == len(found) == 6
    by_moves = {tuple(value["action"]): value for value in values}
    for record in found:
        line = line_of_record(GAME, record)
        moves = tuple(GAME.action_text(s, a) for s, a in zip(line.states, line.actions, strict=False))
        value = by_moves[moves]
        assert record["result"] == ("win" if value["reward"][-1][0] > 0 else "loss")
        assert GAME.returns(line.states[-1]) == tuple(value["reward"][-1])
    seen = {cells for value in values for cells in value["serializad_state"]} - {OVER}
    states = {serialised(GAME, GAME.parse_text(record["state"])) for record in records(tmp_path / "out", "states")}
    assert states == seen


def test_look_aheads_become_look_aheads_and_their_evaluations_examples(tmp_path):
    value = look_ahead(7, SAID.format("black"))
    report = import_nlrl(write(tmp_path / "data", look_ahead=[value]), tmp_path / "out", SPEC)
    seen = {cells for part in value["pv"] for cells in part["serializad_state"]}
    assert report["kept"] == {"game": 0, "lookahead": 1, "label": 0, "state": len(seen), "example": 2}
    (record,) = records(tmp_path / "out", "lookaheads")
    assert GAME.parse_text(record["state"]) == START
    assert [line["open"] for line in record["lines"]] == [True, True]
    assert [len(line["actions"]) for line in record["lines"]] == [4, 4]
    role, shown = Roles(GAME, "instruct").v, {p["final_state"]["state"] for p in value["pv"]}
    for example, kept in zip(examples(tmp_path / "out"), records(tmp_path / "out", "examples"), strict=True):
        state = GAME.parse_text(kept["state"])
        assert drawing(GAME, state) in shown
        assert example.messages == role.messages(StateInput(state))
        assert example.completion == SAID.format("black")
        assert kept["verdict"] == (1.0 if state.player == 0 else -1.0)


def test_a_finished_look_ahead_has_no_evaluation(tmp_path):
    short = play(3)["serializad_state"][-3]
    start = AuthorsData(GAME).position(short)
    last = next(seed for seed in range(500) if play(seed, 4, start)["state"][-1] == OVER)
    value = {
        "current_state": drawing(GAME, start),
        "current_serializad_state": short,
        "pv": [piece(last, 4, None, start)],
    }
    import_nlrl(write(tmp_path / "data", look_ahead=[value]), tmp_path / "out", SPEC)
    assert [line["open"] for line in records(tmp_path / "out", "lookaheads")[0]["lines"]] == [False]
    assert records(tmp_path / "out", "examples") == []


def test_labels_speak_for_black_and_for_the_mover(tmp_path):
    for moves in (3, 4):
        folder = tmp_path / str(moves)
        import_nlrl(write(folder / "data", gt_result=[label(-0.4, moves)]), folder / "out", SPEC)
        (record,) = records(folder / "out", "labels")
        player = GAME.parse_text(record["state"]).player
        assert record["black"] == -0.4
        assert record["value"] == (-0.4 if player == 0 else 0.4)


@pytest.mark.parametrize("prompts", ["ours", "theirs"])
def test_chats_become_examples_in_either_prompt(tmp_path, prompts):
    value = chat()
    import_nlrl(write(tmp_path / "data", train=[value]), tmp_path / "out", SPEC, prompts)
    (example,) = examples(tmp_path / "out")
    (record,) = records(tmp_path / "out", "examples")
    assert example.completion == value[-1]["content"]
    ours = Roles(GAME, "instruct").v.messages(StateInput(GAME.parse_text(record["state"])))
    theirs = [(message["role"], message["content"]) for message in value[:-1]]
    found = [(message.role, message.content) for message in example.messages]
    assert found == ([(message.role, message.content) for message in ours] if prompts == "ours" else theirs)


def test_what_a_teacher_said_is_learned_without_what_it_saw(tmp_path):
    target = {"raw_data": look_ahead(1), "prompt": chat("black")}
    import_nlrl(write(tmp_path / "data", prompt_result=[target]), tmp_path / "out", SPEC)
    (record,) = records(tmp_path / "out", "examples")
    assert GAME.parse_text(record["state"]) == START
    assert record["verdict"] == 1.0
    assert "Judge this board" not in json.dumps(record["messages"])


def test_a_list_in_one_file_is_read_like_lines_and_equal_lines_are_one(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "all.json").write_text(json.dumps([play(1), play(1), label(0.5), chat()]))
    report = import_nlrl(folder, tmp_path / "out", SPEC)
    assert report["lines"] == {"all.json": 4}
    assert (report["kept"]["game"], report["kept"]["label"], report["kept"]["example"]) == (1, 1, 1)
    assert report["repeated"] == 1


def test_importing_twice_gives_equal_files(tmp_path):
    data = write(tmp_path / "data", games=[play(1), play(2)], labels=[label(0.5)], chats=[chat()])
    for name in ("one", "two"):
        import_nlrl(data, tmp_path / name, SPEC)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


# --- what is refused


def spoiled(value: dict[str, Any], *path: Any, to: Any) -> dict[str, Any]:
    """A copy with one place changed."""
    changed = copy.deepcopy(value)
    place: Any = changed
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = to
    return changed


ODD = "bbbbbbbbbb.....wwwwwwwww.1"
ELSEWHERE = AuthorsData(GAME).position(ODD)
CASES = {
    "no JSON": "{",
    "unknown format": {"something": "else"},
    "bad position": {"serializad_state": "bbbb0"},
    "bad position: a pawn too many": {"serializad_state": "bbbbbbbbbbb....wwwwwwwwww0"},
    "bad position: over": {"serializad_state": "bbbbbbbbb.....w....wwwwwb0"},
    "illegal move": spoiled(play(1), "action", 0, to="a5a4"),
    "illegal move: no star": spoiled(play(1), "action", 0, to="nonsense"),
    "positions differ": spoiled(play(1), "serializad_state", 1, to=ODD),
    "positions differ: drawing": spoiled(play(1), "state", 1, to=drawing(GAME, START)),
    "wrong turn": spoiled(play(1), "turn", 0, to=1),
    "wrong reward": spoiled(play(1), "reward", -1, to=[0.0, 0.0]),
    "wrong end": spoiled(play(1), "serializad_state", -1, to=ODD),
    "unfinished game": play(1, 6),
    "lists of different length": spoiled(play(1), "turn", to=[0, 1]),
    "positions differ: other start": spoiled(look_ahead(1), "pv", 0, to=piece(1, 2, None, ELSEWHERE)),
    "positions differ: final": spoiled(look_ahead(1), "pv", 0, "final_state", "turn", to=1),
    "no look-aheads": spoiled(look_ahead(1), "pv", to=[]),
    "unreadable evaluation: missing": spoiled(look_ahead(1), "pv", 1, "final_state", "eval", to="White is better."),
    "unreadable evaluation: ambiguous": chat("black> or <white"),
    "bad label": spoiled(label(0.5), "win_rate", to=2),
    "bad label: other side": spoiled(label(0.5), "win", to="white"),
    "no answer": chat()[:2],
    "no position in the prompt": [{"role": "user", "content": "Well?"}, chat()[2]],
    "several positions in the prompt": [chat()[1], chat(moves=6)[1], chat()[2]],
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_does_not_fit_is_counted_by_its_reason(tmp_path, case):
    reason = case if case.startswith("unreadable") else case.split(":")[0]
    assert refused(CASES[case], tmp_path) == {reason: 1}


def test_an_evaluation_without_messages_has_no_prompt_of_theirs(tmp_path):
    data = write(tmp_path / "data", look_ahead=[look_ahead(1, SAID.format("white"))])
    report = import_nlrl(data, tmp_path / "out", SPEC, "theirs")
    assert (report["kept"]["lookahead"], report["kept"]["example"]) == (1, 0)
    assert report["refused"] == {"no messages of theirs": 2}


def test_the_report_names_lines(tmp_path):
    data = write(tmp_path / "data", games=[play(1), *[CASES["illegal move"]] * 5])
    report = import_nlrl(data, tmp_path / "out", SPEC)
    assert report["refused"] == {"illegal move": 5}
    assert report["refused_lines"] == {
        "illegal move": [f"games.jsonl:{line}: move 1, 'a5a4'" for line in (2, 3, 4)],
    }
    assert json.loads((tmp_path / "out" / "import.json").read_text()) == report


def test_data_without_a_usable_line_and_other_games_are_refused(tmp_path):
    data = write(tmp_path / "data", games=[CASES["illegal move"]])
    with pytest.raises(NLRLError, match=r"none of 1 lines could be used: \{'illegal move': 1\}"):
        import_nlrl(data, tmp_path / "out", SPEC)
    assert not (tmp_path / "out").exists()
    with pytest.raises(NLRLError, match="not of tictactoe"):
        import_nlrl(data, tmp_path / "out", "tictactoe")
    with pytest.raises(NLRLError, match=r"no \.jsonl or \.json file"):
        import_nlrl(tmp_path / "nowhere", tmp_path / "out", SPEC)
    with pytest.raises(Unfit):
        AuthorsData(GAME).position(7)


def test_the_command_prints_what_it_found(tmp_path, capsys):
    data = write(tmp_path / "data", games=[play(1), CASES["illegal move"]])
    assert run_cli(["import-nlrl", str(data), str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "games.jsonl" in printed
    assert "refused: illegal move" in printed
