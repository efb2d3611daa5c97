"""Breakthrough in words: short prompts, facts of one move, games retold by their moves, and a corpus that keeps to the
evidence."""

from __future__ import annotations

import random
import re
from collections import Counter
from functools import cache
from itertools import islice

import pytest

from nlrl.agents.corpus import CorpusSettings, StateSampler, examples
from nlrl.agents.corpus.tokens import atom_texts, atoms
from nlrl.agents.language import Line, Outlook, language_of, line_of, load_phrases
from nlrl.agents.metrics import check_claims, find_leaks
from nlrl.envs import make

GAME = make("breakthrough")
LANGUAGE = language_of(GAME)
START = GAME.initial_states()[0]
EXAMPLE = GAME.parse_text(
    "5  b . . b .\n4  . b . . .\n3  . . w . b\n2  w . . . w\n1  . w . w .\n   a b c d e\n"
    "To move: black\nBlack: a5 d5 b4 e3\nWhite: c3 a2 e2 b1 d1"
)
LAST_PAWNS = GAME.parse_text(
    "5  . . . . .\n4  . b . . .\n3  . . w . .\n2  . . . . .\n1  . . . . .\n   a b c d e\n"
    "To move: black\nBlack: b4\nWhite: c3"
)


class Nth:
    """Always the n-th phrasing, around."""

    def __init__(self, n):
        self._n = n

    def choice(self, items):
        return items[self._n % len(items)]


EVERY = [Nth(n) for n in range(4)]


def played(moves, state=EXAMPLE) -> Line:
    actions, now = [], state
    for move in moves.split():
        actions.append(GAME.parse_action(now, move))
        now = GAME.apply(now, actions[-1]).state
    return line_of(GAME, state, actions)


def action(text, state=EXAMPLE):
    return GAME.parse_action(state, text)


# -- positions ---------------------------------------------------------------------------------------------------------
def test_the_board_lists_the_pawns_and_who_is_to_move():
    assert LANGUAGE.board(EXAMPLE) == "black a5 d5 b4 e3\nwhite c3 a2 e2 b1 d1\nto move: black"
    assert LANGUAGE.board(EXAMPLE._replace(player=1)).endswith("to move: white")
    assert LANGUAGE.board(played("e3d2 c3b4* d2c1").end).endswith("black won at c1")
    assert LANGUAGE.board(played("b4c3*", LAST_PAWNS).end) == "black c3\nwhite none\nblack won by taking all"


def test_equal_boards_are_equal_states():
    rng, known = random.Random(1), {}
    for _ in range(60):
        state = START
        while legal := GAME.legal_actions(state):
            assert known.setdefault(LANGUAGE.board(state), state) == state
            state = GAME.apply(state, rng.choice(legal)).state


def test_facts_count_pawns_rows_and_captures():
    assert LANGUAGE.facts(EXAMPLE) == (
        "Pawns: black 4, white 5. Rows to go: black 2 with e3, white 2 with c3. Captures for black: b4c3*."
    )
    assert LANGUAGE.facts_after(EXAMPLE, action("e3d2")) == (
        "Pawns then: black 4, white 5. Rows to go: black 1 with d2, white 2 with c3. Captures for white: c3b4*."
    )
    assert "Captures for white: none." in LANGUAGE.facts_after(EXAMPLE, action("b4c3*"))


@pytest.mark.parametrize("pick", EVERY)
def test_a_move_that_wins_is_said_to_win(pick):
    state = played("e3d2 c3b4*").end
    said = LANGUAGE.facts_after(state, action("d2c1", state), pick)
    assert "c1" in said
    assert re.search(r"\bw(?:ins|on)\b", said)
    assert "last pawn" in LANGUAGE.facts_after(LAST_PAWNS, action("b4c3*", LAST_PAWNS), pick)


@pytest.mark.parametrize("pick", EVERY)
def test_every_phrasing_says_the_same(pick):
    line = played("e3d2 c3b4* d2c1")
    assert LANGUAGE.content(LANGUAGE.read(EXAMPLE, pick)) == LANGUAGE.content(LANGUAGE.read(EXAMPLE))
    assert LANGUAGE.content(LANGUAGE.retell(line, pick)) == LANGUAGE.content(LANGUAGE.retell(line))
    assert LANGUAGE.content(LANGUAGE.read(EXAMPLE)) != LANGUAGE.content(LANGUAGE.read(START))
    assert LANGUAGE.content(LANGUAGE.retell(line)) != LANGUAGE.content(LANGUAGE.retell(played("e3d2 c3b4* d2e1")))
    assert not find_leaks(LANGUAGE.facts(EXAMPLE, pick))
    for hope, danger in ((None, None), ("c1", None), (None, "c5"), ("c1", "c5")):
        text = LANGUAGE.forecast("black", Outlook(0.3, hope, danger), pick)
        assert ("c1" in text, "c5" in text, "+0.30" in text) == (hope is not None, danger is not None, True)
        assert all(claim.true for claim in check_claims(text, GAME, EXAMPLE))


# -- what was played ---------------------------------------------------------------------------------------------------
def test_games_are_told_by_their_moves_and_how_they_ended():
    assert LANGUAGE.moves(played("e3d2 c3b4*")) == "e3d2 c3b4*"
    assert LANGUAGE.moves(played("e3d2 c3b4* d2c1")) == "e3d2 c3b4* d2c1, black won at c1"
    assert LANGUAGE.moves(played("b4c3*", LAST_PAWNS)) == "b4c3*, black won by taking all"
    assert LANGUAGE.told(played("e3d2"), forfeited=True) == "e3d2, white forfeits"
    assert LANGUAGE.moves(line_of(GAME, EXAMPLE, [])) == ""


@pytest.mark.parametrize("pick", EVERY)
def test_a_retold_line_names_sides_and_moves_in_order(pick):
    text = LANGUAGE.retell(played("e3d2 c3b4* d2c1"), pick)
    places = [text.index(word) for word in ("black", "e3d2", "white", "c3b4*", "d2c1", "c1")]
    assert places == sorted(places)
    assert text.endswith(".") or "won" in text
    assert "won" not in LANGUAGE.retell(played("e3d2"), pick)


def test_a_finished_game_is_worth_what_it_paid_and_was_won_somewhere():
    won, lost, taken = played("e3d2 c3b4* d2c1"), played("e3d2 c3d4 b4a3 d4c5"), played("b4c3*", LAST_PAWNS)
    assert (LANGUAGE.score(won, 0), LANGUAGE.score(won, 1), LANGUAGE.score(lost, 0)) == (1.0, -1.0, -1.0)
    assert [LANGUAGE.aim_of(line) for line in (won, lost, taken)] == ["c1", "c5", None]
    assert LANGUAGE.score(played("e3d2"), 0, forfeited=True) == 1.0


def test_what_a_game_was_won_by_was_an_aim_all_the_way():
    rng = random.Random(4)
    for _ in range(40):
        actions, state = [], START
        while legal := GAME.legal_actions(state):
            actions.append(rng.choice(legal))
            state = GAME.apply(state, actions[-1]).state
        line = line_of(GAME, START, actions)
        aim, winner = LANGUAGE.aim_of(line), 1 - line.end.player
        assert aim is None or all(aim in LANGUAGE.aims(state, winner) for state in line.states)


@pytest.mark.parametrize(
    ("move", "aim", "serves"),
    [("e3d2", "c1", True), ("e3d2", "d1", True), ("e3d2", "b1", False), ("a5a4", "d1", True), ("a2b3", "d5", True),
     ("a2b3", "e5", False), ("a2b3*", "b5", True)],
)  # fmt: skip
def test_a_move_serves_an_aim_that_its_pawn_may_still_reach(move, aim, serves):
    assert LANGUAGE.serves(move, aim) == serves


# -- tokens ------------------------------------------------------------------------------------------------------------
@cache
def corpus(count=700):
    return list(islice(examples(CorpusSettings("breakthrough"), 3), count))


@cache
def tokenizer():
    from nlrl.backbones.tokenizer import train_tokenizer

    texts = (text for e in corpus() for text in (e.messages[-1].content, e.completion))
    return train_tokenizer(texts, atoms([LANGUAGE]), atom_texts([LANGUAGE]), 1280)


def tokens(text):
    return tokenizer()(text, add_special_tokens=False)["input_ids"]


@pytest.mark.slow
def test_cells_moves_players_and_verdicts_are_single_tokens():
    moves = {text for state in (START, EXAMPLE) for text in GAME.legal_moves(state).values()}
    for word in (*moves, "a5", "e1", "black", "white", "10", "+0.33", "-1.00"):
        assert len(tokens(f" {word}")) == 1, word
    assert len(tokens("game 8: e3d2 c3b4* d2c1, black won at c1\n")) == 9


@pytest.mark.slow
def test_prompts_are_short():
    lengths: dict[str, list[int]] = {}
    for example in corpus():
        size = len(tokens(example.messages[-1].content)) + len(tokens(example.completion))
        lengths.setdefault(example.role, []).append(size)
    assert max(lengths["v"]) < 100
    assert max(lengths["g1_games"]) < 400  # up to nine whole games
    assert max(map(max, lengths.values())) < 512


# -- the corpus --------------------------------------------------------------------------------------------------------
def prompt(example):
    return example.messages[-1].content


def replayed(example, told):
    """Plays a retold game by rules of its own: the result for the mover, and the far cell that was reached."""
    sides = {side: set(cells.split()) for side, cells in re.findall(r"^(black|white) (.*)$", prompt(example), re.M)}
    (me,) = re.findall(r"^to move: (.*)$", prompt(example), re.M)
    other = {"black": "white", "white": "black"}
    moves, _, end = told.partition(", ")
    turn = me
    for move in moves.split():
        source, target = move[:2], move[2:4]
        assert source in sides[turn]
        assert int(target[1]) - int(source[1]) == (-1 if turn == "black" else 1)
        assert abs(ord(target[0]) - ord(source[0])) <= 1
        assert (target in sides[other[turn]]) == move.endswith("*")
        sides[turn] = sides[turn] - {source} | {target}
        sides[other[turn]] -= {target}
        turn = other[turn]
    if "forfeits" in end:
        assert end == f"{turn} forfeits"
        return (-1 if turn == me else 1), None
    goal = [cell for cell in sides[other[turn]] if cell[1] == ("1" if other[turn] == "black" else "5")]
    assert end == f"{other[turn]} won " + (f"at {goal[0]}" if goal else "by taking all")
    assert goal or not sides[turn]
    return (1 if other[turn] == me else -1), goal[0] if goal else None


def test_g1_counts_the_games_of_its_prompt_and_names_where_most_were_decided():
    for example in islice(examples(CorpusSettings("breakthrough", roles=("g1_games",)), 8), 250):
        decided = [replayed(example, told) for told in re.findall(r"^game \d: (.*)$", prompt(example), re.M)]
        results = [result for result, _ in decided]
        (said,) = re.findall(r"final_evaluation: (.*)", example.completion)
        assert float(said) == pytest.approx(sum(results) / len(results), abs=0.0051)
        counts = re.search(r"(\d) games black|(\d) games white", example.completion)
        assert counts
        assert int(counts[1] or counts[2]) == len(results)
        text = example.completion.split("\n")[0]
        for result, phrase in ((1, r"(?:mostly by|hopes of|towards) (..)"), (-1, r"(?:danger is|fearing|watch) (..)")):
            goals = Counter(goal for value, goal in decided if value == result and goal)
            named = re.findall(phrase, text)
            assert len(named) == bool(goals)
            assert all(goals[goal] == max(goals.values()) for goal in named)


def test_the_base_policy_is_uniform_over_the_moves_that_are_listed():
    by_rank, expected = Counter(), Counter()
    for example in islice(examples(CorpusSettings("breakthrough", roles=("policy",)), 6), 4000):
        (moves,) = re.findall(r"^moves: (.*)$", prompt(example), re.M)
        legal = moves.split()
        assert legal == list(GAME.legal_moves(example.inp.state).values())
        (chosen,) = re.findall(r"best_move: (.*)", example.completion)
        third = 3 * legal.index(chosen) // len(legal)
        by_rank[third] += 1
        for rank in range(len(legal)):
            expected[3 * rank // len(legal)] += 1 / len(legal)
    assert sum((by_rank[part] - n) ** 2 / n for part, n in expected.items()) < 13.8  # 0.999 quantile, 2 degrees


def test_writing_the_corpus_asks_no_solver_and_no_search(monkeypatch):
    from nlrl.envs.breakthrough import mcts, oracle

    def refuse(*args, **options):
        raise AssertionError("the corpus asked a solver")

    monkeypatch.setattr(oracle.BreakthroughOracle, "__init__", refuse)
    monkeypatch.setattr(oracle.BreakthroughOracle, "value", refuse)
    monkeypatch.setattr(mcts.BreakthroughMCTS, "choose", refuse)
    assert len(list(islice(examples(CorpusSettings("breakthrough"), 12), 300))) == 300


def test_positions_with_few_pawns_come_up_and_half_of_the_games_are_uniform():
    sampler, rng = StateSampler(GAME), random.Random(0)
    pawns = [state.black.bit_count() + state.white.bit_count() for state in (sampler.draw(rng) for _ in range(1500))]
    assert sum(count <= 12 for count in pawns) > 0.06 * len(pawns)  # 2 % in uniformly random games
    taken = Counter()
    for seed in range(600):
        choose = LANGUAGE.wander(random.Random(seed))
        taken[GAME.action_text(EXAMPLE, choose(EXAMPLE)) == "b4c3*"] += 1
    share = 0.5 / 8 + 0.5 * (0.5 + 0.5 / 8)  # one capture among eight moves
    assert taken[True] / 600 == pytest.approx(share, abs=0.07)


def test_bands_of_verdicts_have_words_of_their_own():
    words = [word for band in load_phrases("breakthrough")["bands"].values() for word in band]
    assert not any(a in b for a in words for b in words if a is not b)
