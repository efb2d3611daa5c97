from __future__ import annotations

import json
import os

import pytest

from nlrl.envs import make
from nlrl.errors import NLRLError
from nlrl.testing import write_run
from nlrl.ui import pictures, tables
from nlrl.ui.cards import Card, claims_line, make_card
from nlrl.ui.game_records import find_game, find_run, game_keys, game_stages, records_about, run_config, stage_folder
from nlrl.ui.replay import load_replay, make_replay, who_plays
from nlrl.ui.said import CHOICE, MOVE, OWN, POSITION, TARGET, nearest, own_verdict, policy_of, said_about

from .replayed import CHOICE as CHOSEN
from .replayed import CONFIG, EVIL, GAME, KEY, PLAYED, POLICY, STAGES, START, TARGETS, write_played


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_played(tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture(scope="module")
def replay(run):
    return load_replay(run, "001/rollout", KEY)


# -- finding -----------------------------------------------------------------------------------------------------------
def test_only_stages_with_games_are_listed(run):
    assert game_stages(run) == ["001/rollout"]
    assert game_keys(stage_folder(run, "001/rollout"), 9) == [KEY, "bb22"]
    assert game_keys(stage_folder(run, "001/rollout"), 1) == [KEY]


def test_a_run_is_found_by_name_and_never_outside_the_folder(run, tmp_path):
    assert find_run(run.parent, "run") == run
    assert find_run(run, ".") == run
    for name in ("", "none", "../" + run.parent.name + "/run", "/etc", "a\0b", str(run)):
        assert find_run(tmp_path, name) is None


@pytest.mark.parametrize("stage", ["", "x", "1/..", "001/../..", "001/none", "9999999999/rollout"])
def test_a_stage_that_is_none_is_not_found(run, stage):
    assert stage_folder(run, stage) is None


def test_records_of_an_unfinished_stage_are_read_up_to_the_torn_line(tmp_path):
    run = write_played(tmp_path / "run")
    folder = stage_folder(run, "001/rollout")
    os.remove(folder / "manifest.json")
    (folder / "shards").mkdir()
    (folder / "shards" / "games.jsonl").write_text('{"schema":1,"kind":"game","key":"torn","sta')
    assert game_keys(folder, 9)[:2] == [KEY, "bb22"]
    assert find_game(folder, KEY) == find_game(stage_folder(run, "001/rollout"), KEY)
    assert find_game(folder, "torn") is None


def test_records_about_positions_are_those_of_the_iteration_and_of_nothing_else(run):
    found = records_about(run, 1, {START})
    assert sorted(record["kind"] for record in found[START]) == ["improvement", "policy", "target", "target"]
    assert records_about(run, 2, {START}) == {}
    assert records_about(run, 1, {"elsewhere"}) == {}


# -- the game ----------------------------------------------------------------------------------------------------------
def test_a_game_has_its_positions_values_and_judgements(replay):
    assert [ply.move for ply in replay.plies] == ["5", "2", "1", "9", "6", "4", "3", "7", "8", ""]
    assert [ply.judgement.label for ply in replay.plies[:2]] == ["best", "blunder"]
    assert replay.plies[1].judgement.sentence == "Blunder: 1, 3, 7 and 9 were best."
    assert [replay.exact_value(ply) for ply in range(3)] == [0.0, 0.0, 1.0]  # from O's view
    assert replay.title(1) == "Move 2, X (random): 2"
    assert replay.next_blunder(0) == 1


def test_the_first_players_view_turns_the_second_players_verdicts(replay):
    two = make_replay(GAME, {**PLAYED, "turns": [{"ply": 1, "reply": "final_evaluation: -0.25"}]})
    assert two.said_value(1) == 0.25
    assert two.plies[1].said[OWN].verdict == -0.25
    assert replay.said_value(0) == 0.4


def test_a_games_result_is_the_value_at_its_end():
    record = {"start": START, "actions": [0, 3, 1, 4, 2], "result": "win", "seat": 0}
    won = make_replay(GAME, record)
    assert won.exact_value(5) == 1.0
    assert won.title(5) == "After 5 moves: win for O"
    assert won.accuracy(0).judged == 3


def test_accuracy_is_told_by_player(replay):
    first, second = replay.accuracy(0), replay.accuracy(1)
    assert (first.judged, second.judged) == (5, 4)
    assert sum(first.counts.values()) == 5
    assert tables.accuracy_line("O", first).startswith("O: ")
    assert "mean regret" in tables.accuracy_line("X", second)


def test_a_move_that_was_drawn_at_random_is_said_to_be_and_is_no_merit_of_the_policy():
    asked, drawn = (make_replay(GAME, PLAYED | more) for more in ({}, {"explored": [0, 2]}))
    assert [ply.explored for ply in drawn.plies[:4]] == [True, False, True, False]
    assert "drawn at random" in drawn.title(0)
    assert "drawn at random" not in drawn.title(1) + asked.title(0)
    assert drawn.accuracy(0).judged == asked.accuracy(0).judged - 2
    assert drawn.accuracy(1) == asked.accuracy(1)
    assert not any(ply.explored for ply in make_replay(GAME, PLAYED | {"explored": "0"}).plies)


def test_chance_is_replayed_as_the_record_tells_it():
    lake = make("frozen_lake", slippery=True)
    start = lake.initial_states()[0]
    steps = lake.transitions(start, 2)
    assert len(steps) > 1
    record = {"start": lake.to_text(start), "actions": [2, 2], "outcomes": [1, 0], "result": "cut", "seat": 0}
    found = make_replay(lake, record)
    assert found.states[1] == steps[1].state
    assert not found.problem
    assert found.plies[0].judgement is not None
    untold = make_replay(lake, {key: value for key, value in record.items() if key != "outcomes"})
    assert len(untold.plies) == 1
    assert "up to move 0" in untold.problem


def test_a_reply_without_a_legal_move_is_named_in_a_maze_and_ends_a_board_game():
    maze = make("maze")
    start = maze.to_text(maze.initial_states()[0])
    turns = [{"ply": 0, "reply": "I sit down", "failures": ["missing", "missing"]}]
    action = maze.legal_actions(maze.initial_states()[0])[0]
    walked = make_replay(maze, {"start": start, "actions": [-1, action], "turns": turns, "seat": 0, "result": "cut"})
    assert walked.plies[0].judgement.label == "no legal move"
    assert walked.plies[1].move
    board = make_replay(
        GAME, {"start": START, "actions": [4], "seat": 1, "result": "forfeit", "turns": [{"ply": 1, "reply": "?"}]}
    )
    assert board.title(1) == "Move 2, X (policy): no legal move"
    assert make_card(board, 1).parsed.startswith("no move: missing")


@pytest.mark.parametrize(
    "record", [{}, {"start": START}, {"start": "chess", "actions": []}, {"start": 5, "actions": [1]}]
)
def test_a_record_that_is_no_game_is_refused(record):
    with pytest.raises(NLRLError):
        make_replay(GAME, record)


@pytest.mark.parametrize("actions", [[4, 4], [4, "x"], [4, None], [4, 99], [4, [1]]])
def test_a_game_that_cannot_be_replayed_is_shown_as_far_as_it_goes(actions):
    found = make_replay(GAME, {"start": START, "actions": actions})
    assert len(found.plies) == 2
    assert found.problem.startswith("shown up to move 1")


def test_a_leagues_players_are_named_and_a_forfeit_without_words_is_seen():
    record = {"start": START, "actions": [4], "players": ["a", "b"], "result": "win", "forfeited": 1}
    found = make_replay(GAME, record)
    assert found.title(1) == "Move 2, X (b): no legal move"
    assert [who_plays(record, player) for player in (0, 1)] == ["a", "b"]


def test_a_missing_game_is_refused_by_name(run):
    with pytest.raises(NLRLError, match="no game 'none'"):
        load_replay(run, "001/rollout", "none")


def test_unknown_values_are_said_to_be_unknown(tmp_path):
    game = make("breakthrough")
    start = game.initial_states()[0]
    found = make_replay(game, {"start": game.to_text(start), "actions": [game.legal_actions(start)[0]]}, nodes=2000)
    assert found.exact_value(0) is None
    assert "2,000 nodes" in found.reasons[0]
    assert found.plies[0].judgement is None
    assert tables.tablebase(found, 0)[0]["result"] == "unknown"
    exact, said = pictures.gauges(found, 0)
    assert "exact value, best play: unknown" in exact
    assert "value in the text: none" in said


# -- what was said -----------------------------------------------------------------------------------------------------
def test_verdicts_come_from_every_source_and_the_nearest_counts():
    said = said_about(GAME, GAME.parse_text(START), 4, PLAYED["turns"][0], [CHOSEN, *TARGETS])
    assert {source: one.verdict for source, one in said.items()} == {OWN: 0.4, MOVE: 0.6, CHOICE: 0.6, TARGET: 0.5}
    assert nearest(said).verdict == 0.4
    assert nearest(said, TARGET).text.endswith("+0.50")
    assert nearest(said, POSITION) is None


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("I prefer 5 at +0.58, ahead of 1 at +0.10.\nbest_move: 5", 0.58),
        ("Good. final_evaluation: -0.30", -0.3),
        ("I put X at +0.50.\nbest_move: 5", -0.5),  # O is to move
        ("I prefer 1 at +0.58.\nbest_move: 5", None),
        ("I try 5.\nbest_move: 5", None),
        ("5 at +1.50", None),
    ],
)
def test_a_players_own_number_is_the_one_of_its_move(reply, verdict):
    assert own_verdict(GAME, GAME.parse_text(START), 4, reply) == verdict


@pytest.mark.parametrize("verdict", [None, "0.5", True, 2.0, float("nan"), []])
def test_verdicts_that_are_none_are_left_out(verdict):
    record = {**CHOSEN, "candidates": [{"action": 4, "text": "x", "verdict": verdict}]}
    assert said_about(GAME, GAME.parse_text(START), 4, None, [record]) == {}


def test_probabilities_are_shares_of_all_answers_forfeits_included():
    assert policy_of([POLICY], (0, 4, 8)) == {4: 0.6, 0: 0.2}
    assert policy_of([CHOSEN], (0, 4)) == {}


# -- the card ----------------------------------------------------------------------------------------------------------
def test_a_card_holds_prompt_answer_candidates_and_targets(run, replay):
    card = make_card(replay, 0, run_config(run))
    assert card.prompt[-1].content.startswith("Choose a move.")
    assert card.reply == PLAYED["turns"][0]["reply"]
    assert card.parsed == "5"
    assert "✗ O wins at 9" in claims_line(card.claims)
    assert card.facts["weights"] == "actor@7"
    assert card.facts["critic's weights"] == "critic@1"
    (choice,) = card.improvements
    assert [(one.move, one.verdict, one.exact) for one in choice.candidates] == [("5", 0.6, 0.0), ("1", 0.1, 0.0)]
    assert (choice.chosen, choice.unread) == ("5", ("9",))
    assert "four lines" in choice.prompt[-1].content
    assert [merge.about for merge in card.merges] == ["move 5", "move 1"]
    assert card.merges[0].inputs[0] == "O5 X2 O1, draw"
    assert card.merges[0].learned.startswith("O has the middle")
    assert card.merges[1].failures == ("missing",)


@pytest.mark.parametrize(
    ("fused", "shown"),
    [
        ([{"played": "O5 X2", "successor": f"level {EVIL}"}], (("O5 X2", f"level {EVIL}"),)),
        ([], ()),
        ("O5", ()),
        ([1], ()),
        (None, ()),
    ],
)
def test_a_target_says_what_g2_was_given_where_that_is_kept(tmp_path, fused, shown):
    target = {**TARGETS[0], "evidence": "outlooks", "samples": ["level"], "fused": fused}
    run = write_run(tmp_path / "run", config=CONFIG, records={**STAGES, "001/targets": [target]})
    card = make_card(load_replay(run, "001/rollout", KEY), 0, run_config(run))
    assert card.merges[0].kind == "outlooks"
    assert card.merges[0].fused == shown


def test_retries_and_latency_are_told_where_they_are_recorded(run, replay):
    card = make_card(replay, 2, run_config(run))
    assert card.facts["retries"] == "1 (missing)"
    assert card.facts["latency"] == "0.25 s"
    assert "latency" not in make_card(replay, 0, run_config(run)).facts


def test_times_beside_the_records_and_the_weights_in_them_are_on_the_card(tmp_path):
    played = {
        **PLAYED,
        "turns": [{k: v for k, v in turn.items() if k not in ("seconds", "weights")} for turn in PLAYED["turns"]],
    }
    run = write_run(tmp_path / "run", config=CONFIG, records={"001/evaluation": [{**played, "weights": "actor@1"}]})
    rows = [[0, 0, 1.7e12, 250_000, 50, 0], [2, 0, 1.7e12, 100_000, 5, 0], [2, 1, 1.7e12, 400_000, 5, 1]]
    line = json.dumps({"key": KEY, "turns": rows}, separators=(",", ":"))
    (run / "iterations/001/evaluation/timings.jsonl").write_text(line + '\n{"key":"' + KEY)  # torn
    found = load_replay(run, "001/evaluation", KEY)
    facts = [make_card(found, ply, run_config(run)).facts for ply in (0, 2)]
    assert facts[0]["latency"] == "0.25 s (200 tokens/s), asked 2023-11-14 22:13:20 UTC"
    assert facts[1]["latency"].startswith("0.50 s (20 tokens/s), 2 attempts, asked")
    assert facts[1]["latency"].endswith("an answer made for an earlier turn")
    assert facts[0]["weights"] == "actor@1"
    (run / "iterations/001/evaluation/timings.jsonl").unlink()
    assert "latency" not in make_card(load_replay(run, "001/evaluation", KEY), 0, run_config(run)).facts


def test_what_the_records_do_not_hold_is_left_out(replay):
    assert make_card(replay, 1) == Card()
    assert make_card(replay, len(replay.plies) - 1) == Card()
    assert make_card(replay, 0, None).prompt == ()


def test_look_aheads_that_g2_was_given_are_retold_from_the_first_iteration(tmp_path):
    kept = [
        {"actions": [4, 0], "open": True},
        {"actions": [4, 4], "open": True},
        {"actions": [0, 3, 1, 4, 2], "open": False},
    ]
    record = {"kind": "lookahead", "state": START, "policy": "random", "lines": kept}
    stages = {"001/rollout": [PLAYED], "000/lookaheads": [record]}
    run = write_run(tmp_path / "run", config=CONFIG, records=stages)
    card = make_card(load_replay(run, "001/rollout", KEY), 0)
    assert card.look_aheads == ("O5 X1", "O1 X4 O2 X5 O3, O won by 1-2-3")


@pytest.mark.parametrize("nonsense", [None, 5, "x", [], {}, [[]], [{}], {"a": 1}, True])
def test_fields_of_any_type_are_borne(nonsense):
    fields = (
        "candidates",
        "unread",
        "action",
        "text",
        "verdict",
        "samples",
        "failures",
        "target",
        "moves",
        "critic",
        "lines",
    )
    about = [
        {"schema": 1, "key": field, **CHOSEN, **TARGETS[0], **POLICY, "kind": kind, field: nonsense}
        for kind in ("improvement", "target", "policy", "decision", "value", "lookahead")
        for field in fields
    ]
    names = ("turns", "seat", "players", "result", "opponent", "outcomes", "person")
    for name in names:
        found = make_replay(GAME, {**PLAYED, name: nonsense}, {START: about})
        make_card(found, 0)
        pictures.board(found, 0)
        assert found.title(0)
        assert tables.tablebase(found, 0)
        assert tables.moves(found)
    turn = {"ply": 0, "reply": "x"} | dict.fromkeys(("tokens", "failures", "seconds", "logprobs", "verdict"), nonsense)
    assert make_card(make_replay(GAME, {**PLAYED, "turns": [turn]}), 0).reply == "x"


def test_no_policy_version_is_made_up_for_other_stages(tmp_path):
    run = write_run(tmp_path / "run", config=CONFIG, records={"001/evaluation": [PLAYED], "001/targets": TARGETS})
    found = load_replay(run, "001/evaluation", KEY)
    assert "weights" not in make_card(found, 0, run_config(run)).facts


# -- pictures and tables -----------------------------------------------------------------------------------------------
def test_the_board_has_candidates_by_probability_and_verdicts(replay):
    drawn = pictures.board(replay, 0)
    assert "60%" in drawn
    assert "20%" in drawn
    assert "+0.60" in drawn
    assert "+0.60" not in pictures.board(replay, 0, "nothing")
    assert "+0.00" in pictures.board(replay, 0, "exact values")


def test_a_maze_shows_the_walk_beside_a_shortest_way():
    maze = make("maze")
    start = maze.initial_states()[0]
    actions = [maze.legal_actions(start)[0]]
    found = make_replay(maze, {"start": maze.to_text(start), "actions": actions, "result": "cut", "seat": 0})
    assert "stroke-dasharray" in pictures.board(found, 1)
    assert found.plies[0].judgement is not None


def test_the_tablebase_has_every_legal_move_the_best_first(replay):
    rows = tables.tablebase(replay, 2)
    assert len(rows) == 7
    assert rows[0]["result"] == "wins"
    assert rows[0]["best"] == "★"
    assert [row["move"] for row in rows if row["played"]] == ["1"]
    assert tables.tablebase(replay, 0)[4]["policy"] in ("", "60%")


def test_the_move_list_has_glyphs_and_both_values(replay):
    rows = tables.moves(replay)
    assert [row["move"] for row in rows[:2]] == ["5 ★", "2 ??"]
    assert (rows[0]["exact"], rows[0]["text"]) == ("+0.00", "+0.40")
    assert rows[-1]["move"] == "end"


def test_the_chart_has_both_values_and_nothing_for_what_is_unknown(replay):
    rows = pictures.chart_rows(replay)
    assert [(row["ply"], row["value"]) for row in rows if row["what"] == "text"] == [(0, 0.4)]
    assert len([row for row in rows if row["what"] == "exact"]) == len(replay.plies)
    assert pictures.chart(replay).count("<circle") == len(replay.plies)
    assert pictures.chart_spec(replay)["layer"][2]["params"][0]["name"] == pictures.CLICKED


def test_pictures_are_svg_without_a_models_words(replay):
    for drawn in (pictures.board(replay, 0), *pictures.gauges(replay, 0), pictures.chart(replay)):
        assert drawn.startswith("<svg")
        assert EVIL not in drawn
        assert "<script" not in drawn
