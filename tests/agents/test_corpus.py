"""The corpus teaches to read and to count, never to play: checked on its texts, by code of its own."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from itertools import islice

import pytest

from nlrl.agents.corpus import MIXTURE, CorpusSettings, StateSampler, examples
from nlrl.agents.corpus.playouts import FORFEIT_SHARE
from nlrl.agents.corpus.states import HELD_OUT_SHARE, is_held_out, states_by_ply
from nlrl.agents.corpus.study import ROLE_OF, study, text_agrees
from nlrl.agents.language import load_phrases
from nlrl.agents.metrics.claims import check_claims
from nlrl.agents.metrics.leaks import find_leaks
from nlrl.agents.parser import ParseFailure
from nlrl.agents.roles import Roles
from nlrl.backbones.language_model import Completion
from nlrl.envs import make
from nlrl.testing.by_rules import RuleModel

GAME = make("tictactoe")
ROLES = Roles(GAME)
AGGREGATORS = ("g1_games", "g1_outlooks", "g2")
VALUES = ("q", "v", *AGGREGATORS)
MOVERS = ("policy", "improvement")
READERS = ("descriptor", "reader")
BOARD = re.compile(r" \S \| \S \| \S\n---\+---\+---\n \S \| \S \| \S\n---\+---\+---\n \S \| \S \| \S")
NUMBER = re.compile(r"[+-]\d\.\d\d")
LINES = ("1-2-3", "4-5-6", "7-8-9", "1-4-7", "2-5-8", "3-6-9", "1-5-9", "3-5-7")


def take(count, *roles, seed=5, **settings):
    return list(islice(examples(CorpusSettings(roles=roles, **settings), seed), count))


def prompt(example):
    return example.messages[-1].content


def cells(example):
    """The board of a prompt as nine symbols, read without the game."""
    (board,) = BOARD.findall(prompt(example))
    return re.findall(r"[OX1-9]", board)


def mover(example):
    board = cells(example)
    return "OX"[board.count("O") > board.count("X")]


def verdict_said(example):
    """The machine-readable verdict."""
    return float(re.fullmatch(r"(?s).*\nfinal_evaluation: ([+-]\d\.\d\d)", example.completion)[1])


def items(example, label):
    return [text for _, text in re.findall(rf"^{label} (\d): (.*)$", prompt(example), re.MULTILINE)]


# -- form --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("role", MIXTURE)
def test_every_example_parses_to_its_own_answer(role):
    for example in take(300, role):
        assert example.role == role
        if role in READERS:
            assert example.answer is None
            continue
        output = getattr(ROLES, ROLE_OF.get(role, role)).parse(example.inp, Completion(example.completion))
        assert not isinstance(output, ParseFailure), (output, example.completion)
        assert (output.action if role in MOVERS else output.verdict) == pytest.approx(example.answer, abs=0.0051)


def test_the_stream_mixes_all_roles_in_their_shares():
    counts = Counter(example.role for example in take(4000))
    assert sum(MIXTURE.values()) == pytest.approx(1)
    for role, share in MIXTURE.items():
        assert counts[role] / 4000 == pytest.approx(share, abs=0.03)


def test_equal_seeds_give_equal_streams_and_workers_different_ones():
    first, again = ([prompt(e) + e.completion for e in take(50, seed=seed)] for seed in (1, 1))
    assert first == again
    assert first != [prompt(e) + e.completion for e in take(50, seed=2)]
    second = [prompt(e) + e.completion for e in islice(examples(CorpusSettings(), 1, worker=1), 50)]
    assert len(set(first) & set(second)) < 5


def test_sentences_vary_and_the_first_phrasing_is_the_mode():
    arguments = [e.completion.split("\n")[0] for e in take(500, "policy")]
    guesses = [phrase.partition("{move}")[0] for phrase in load_phrases("tictactoe")["argument"]["guess"]]
    counts = [sum(f" {guess}" in argument for argument in arguments) for guess in guesses]
    assert sum(counts) == 500
    assert counts[0] > 250
    assert min(counts[1:]) > 25


def test_no_facts_leaves_the_sentence_of_winning_cells_out_and_nothing_else():
    for role in ("policy", "q", "v", "g1_games"):
        without = take(200, role, facts=False)
        assert not any(
            re.search(r"wins at|complete a line at|inning cells|one move from", e.completion) for e in without
        )
        for example in without:
            output = getattr(ROLES, ROLE_OF.get(role, role)).parse(example.inp, Completion(example.completion))
            assert not isinstance(output, ParseFailure)


# -- it says nothing about how to play ---------------------------------------------------------------------------------
def chi_square(counts, expected):
    return sum((counts[key] - n) ** 2 / n for key, n in expected.items())


def test_the_base_policy_is_uniform_over_legal_moves():
    found = take(12000, "policy")
    by_rank, expected = Counter(), Counter()
    for example in found:
        free = [cell for cell in cells(example) if cell.isdigit()]
        assert example.completion.endswith(f"best_move: {example.answer + 1}")
        by_rank[len(free), free.index(str(example.answer + 1))] += 1
        for rank in range(len(free)):
            expected[len(free), rank] += 1 / len(free)
    # Degrees of freedom: for each number of free cells, one less. The 0.999 quantile is about d + 3.1 sqrt(2 d) + 6.
    degrees = sum(n - 1 for n in {n for n, _ in expected})
    assert chi_square(by_rank, expected) < degrees + 3.1 * (2 * degrees) ** 0.5 + 6


def test_the_base_policy_neither_takes_nor_avoids_wins_and_blocks():
    taken = expected = variance = 0.0
    for example in take(12000, "policy"):
        board = cells(example)
        special = {cell for cell in board if cell.isdigit() and completes(board, cell)}
        share = len(special) / sum(cell.isdigit() for cell in board)
        taken += str(example.answer + 1) in special
        expected, variance = expected + share, variance + share * (1 - share)
    assert abs(taken - expected) < 4 * variance**0.5


def completes(board, cell):
    """Whether either side would complete a line at a free cell."""
    for line in LINES:
        rest = [board[int(c) - 1] for c in line.split("-") if c != cell]
        if cell in line.split("-") and rest in (["O", "O"], ["X", "X"]):
            return True
    return False


def test_the_critics_verdicts_are_noise_unless_the_move_ends_the_game():
    open_moves, ends = [], []
    for example in take(6000, "q"):
        after = GAME.apply(example.inp.state, example.inp.action).state
        if GAME.is_terminal(after):
            ends.append(verdict_said(example) == GAME.returns(after)["OX".index(mover(example))])
        else:
            threatened = bool(
                set(range(9)) & {int(c) - 1 for c in cells(example) if c.isdigit() and completes(cells(example), c)}
            )
            open_moves.append((verdict_said(example), threatened))
    assert all(ends)
    assert len(ends) > 100
    for part in (True, False):
        values = [v for v, threatened in open_moves if threatened == part]
        assert abs(sum(values) / len(values)) < 4 * 0.75 / len(values) ** 0.5  # spread of the noise is at most 0.75


def test_writing_the_corpus_consults_no_solver():
    code = (
        "import sys; from itertools import islice; from nlrl.agents.corpus import CorpusSettings, examples\n"
        "assert len(list(islice(examples(CorpusSettings(), 0), 2000))) == 2000\n"
        "print([name for name in sys.modules if name.startswith(('nlrl.envs.oracle', 'nlrl.envs.opponents'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert "oracle" not in done.stdout


def test_no_example_asks_an_oracle(monkeypatch):
    from nlrl.envs import oracle

    def refuse(*args, **options):
        raise AssertionError("the corpus asked the oracle")

    monkeypatch.setattr(oracle, "oracle_for", refuse)
    for name in ("__init__", "value", "q_values", "best_actions"):
        monkeypatch.setattr(oracle.TabularOracle, name, refuse)
    assert len(take(1500)) == 1500


# -- held-out positions ------------------------------------------------------------------------------------------------
def parsed_board(example):
    (board,) = BOARD.findall(prompt(example))
    return GAME.parse_text(board)


def test_held_out_positions_never_appear_in_training_prompts_and_others_never_in_held_out_ones():
    for held_out in (False, True):
        for example in take(3000, seed=9, held_out=held_out):
            state = parsed_board(example)
            ply = 9 - len(GAME.legal_actions(state))
            assert is_held_out(GAME, state, ply) == held_out


def test_held_out_and_training_positions_share_out_all_there_are():
    train, test = (StateSampler(GAME, held_out).all() for held_out in (False, True))
    every = [state for layer in states_by_ply("tictactoe").values() for state in layer]
    assert len(every) == 4520  # non-terminal states of Tic-Tac-Toe
    assert len(train) + len(test) == len(every)
    assert not set(train) & set(test)
    assert len(test) / len(every) == pytest.approx(HELD_OUT_SHARE, abs=0.02)
    assert min(9 - len(GAME.legal_actions(state)) for state in test) == 3  # the openings are everybody's


def test_every_training_position_is_drawn():
    import random

    sampler, rng = StateSampler(GAME), random.Random(0)
    drawn = {sampler.draw(rng) for _ in range(60000)}
    assert len(drawn) > 0.95 * len(sampler.all())


# -- aggregators follow the evidence in their prompt -------------------------------------------------------------------
def played(example, retold):
    """Plays a retold game on the board of the prompt, without the game's code: result for the mover, winning line."""
    board, me = cells(example), mover(example)
    moves, _, end = retold.partition(", ")
    turn = me
    for word in moves.split():
        assert word[0] == turn
        assert board[int(word[1]) - 1] == word[1], f"{word} plays a taken cell"
        board[int(word[1]) - 1] = turn
        turn = "OX"[turn == "O"]
    complete = [line for line in LINES if len({board[int(c) - 1] for c in line.split("-")}) == 1]
    if "forfeits" in end:
        assert not complete
        assert end == f"{turn} forfeits"
        return (-1 if turn == me else 1), None
    if not complete:
        assert (end, sum(cell.isdigit() for cell in board)) == ("draw", 0)
        return 0, None
    line = end.rsplit(" ", 1)[1]
    assert line in complete
    winner = board[int(line[0]) - 1]
    assert end.startswith(f"{winner} won by ")
    return (1 if winner == me else -1), line


def test_g1_counts_the_games_of_its_prompt():
    sizes = Counter()
    for example in take(1500, "g1_games"):
        results = [played(example, retold)[0] for retold in items(example, "game")]
        n, won, lost = len(results), results.count(1), results.count(-1)
        sizes[n] += 1
        assert verdict_said(example) == pytest.approx((won - lost) / n, abs=0.0051)
        counted = re.search(
            r"Of (\d) games . won (\d), drew (\d) and lost (\d)|In (\d) games . has (\d) won, (\d) drawn, (\d) lost",
            example.completion,
        )
        assert [int(count) for count in counted.groups() if count] == [n, won, n - won - lost, lost]
        assert (
            NUMBER.findall(example.completion)[0] == example.completion[-5:]
        )  # the sentence says the number of the ending
    assert sorted(sizes) == list(range(1, 10))


def test_g1_names_the_lines_that_decided_most_games():
    for example in take(600, "g1_games"):
        decided = [played(example, retold) for retold in items(example, "game")]
        text = example.completion.split("\n")[0]
        for result, phrase in (
            (1, r"(?:mostly by|along|best along) (\d-\d-\d)"),
            (-1, r"(?:danger is|fearing|watch) (\d-\d-\d)"),
        ):
            lines = Counter(line for value, line in decided if value == result and line)
            named = re.findall(phrase, text)
            assert len(named) == bool(lines)
            assert all(lines[line] == max(lines.values()) for line in named)


def test_g1_games_begin_with_the_action_that_is_judged():
    about = Counter()
    for example in take(400, "g1_games"):
        action = re.findall(r"^([OX]) plays (\d)$", prompt(example), re.MULTILINE)
        about[bool(action)] += 1
        if action:
            assert {retold[:2] for retold in items(example, "game")} == {"".join(action[0])}
    assert about[False] > 40  # G1 of a state: games from any move


def test_the_evidence_is_independent_of_how_good_the_position_is():
    verdicts = [verdict_said(example) for example in take(1500, "g1_games")]
    assert abs(sum(verdicts) / len(verdicts)) < 0.35
    assert {band for v in verdicts for band in [round(v * 2) / 2]} == {-1, -0.5, 0, 0.5, 1}


def test_forfeits_occur_in_retold_games_as_rarely_as_they_should():
    games = [retold for example in take(800, "g1_games") for retold in items(example, "game")]
    share = sum("forfeits" in retold for retold in games) / len(games)
    assert 0 < share < 10 * FORFEIT_SHARE


def test_g1_averages_the_outlooks_of_its_prompt():
    for example in take(600, "g1_outlooks"):
        numbers = [float(NUMBER.findall(text)[-1]) for text in items(example, "outlook")]
        assert 1 <= len(numbers) <= 5
        assert verdict_said(example) == pytest.approx(sum(numbers) / len(numbers), abs=0.0101)
        low, high = NUMBER.findall(example.completion)[:2]
        assert (float(low), float(high)) == (min(numbers), max(numbers))


def test_g2_retells_the_steps_and_turns_what_follows_to_the_movers_view():
    over = Counter()
    for example in take(1500, "g2"):
        (steps,) = re.findall(r"^steps: (.*)$", prompt(example), re.MULTILINE)
        (then,) = re.findall(r"^then: (.*)$", prompt(example), re.MULTILINE)
        me = mover(example)
        retold = re.findall(r"([OX]) (?:plays|takes|answers) (\d)", example.completion)
        assert [a + b for a, b in retold] == steps.partition(", ")[0].split()
        over[then == "the game is over."] += 1
        if then == "the game is over.":
            expected = played(example, steps)[0]
        else:
            assert ", " not in steps
            (speaker,) = re.findall(r"I put ([OX]) at|forecast for ([OX]) is|([OX]) stands at", then)
            expected = float(NUMBER.findall(then)[-1]) * (1 if "".join(speaker) == me else -1)
        assert verdict_said(example) == pytest.approx(expected, abs=0.001)
    assert min(over.values()) > 100


# -- I -----------------------------------------------------------------------------------------------------------------
def test_i_chooses_the_first_of_the_best_evaluated_candidates():
    ties = 0
    for example in take(1500, "improvement"):
        candidates = [
            (move, float(NUMBER.findall(text)[-1]))
            for move, text in re.findall(r"^move (\d): (.*)$", prompt(example), re.MULTILINE)
        ]
        best = max(value for _, value in candidates)
        ties += sum(value == best for _, value in candidates) > 1
        chosen = next(move for move, value in candidates if value == best)
        assert example.completion.endswith(f"\nbest_move: {chosen}")
        argument = example.completion.split("\n")[0]
        if len(candidates) > 1:
            second = sorted(candidates, key=lambda c: -c[1])[1]
            shown = NUMBER.findall(argument)[-2:]
            assert [float(number) for number in shown] == [best, second[1]]
            assert re.search(rf"(?:ahead of|then comes) {second[0]} at", argument)
    assert ties > 50


def test_candidates_are_shuffled_and_their_verdicts_are_not_tied_to_places():
    first, listed = 0, 0
    for example in take(1000, "improvement"):
        moves = re.findall(r"^move (\d):", prompt(example), re.MULTILINE)
        if len(moves) >= 4:
            listed += 1
            first += example.completion.endswith(f"best_move: {min(moves)}")
    assert first / listed < 0.35


# -- truth and form of what is said ------------------------------------------------------------------------------------
@pytest.mark.parametrize("role", [role for role in MIXTURE if role not in ("g2", "descriptor")])
def test_what_texts_claim_about_the_position_is_true(role):
    count = 0
    for example in take(400, role, seed=11):
        state = parsed_board(example)
        claims = check_claims(example.completion, GAME, state, getattr(example.inp, "action", None))
        count += len(claims)
        assert all(claim.true for claim in claims), (example.completion, prompt(example), claims)
    assert count > 400


def test_candidates_in_the_prompts_of_i_are_true_too():
    for example in take(200, "improvement"):
        for action, evaluation in example.inp.candidates:
            assert all(claim.true for claim in check_claims(evaluation.text, GAME, example.inp.state, action))


def test_retold_moves_are_the_moves_of_the_prompt():
    for example in take(400, "descriptor"):
        (moves,) = re.findall(r"^moves: (.*)$", prompt(example), re.MULTILINE)
        retold = re.findall(r"([OX]) (?:plays|takes|answers) (\d)", example.completion)
        assert [a + b for a, b in retold] == moves.partition(", ")[0].split()


@pytest.mark.parametrize("role", VALUES)
def test_words_belong_to_the_number_they_stand_beside(role):
    bands = load_phrases("tictactoe")["bands"]
    for example in take(300, role):
        assert text_agrees(example.completion, verdict_said(example), bands)


@pytest.mark.parametrize("role", ["policy", "q", "v", "improvement"])
def test_roles_without_evidence_cite_none(role):
    assert not any(find_leaks(example.completion) for example in take(400, role))


def test_forecasts_are_worded_as_forecasts():
    for example in take(300, "q"):
        assert re.search(r"I put [OX] at|[Mm]y forecast for [OX] is|[OX] stands at", example.completion)


# -- the study of docs/bundled_models.md -------------------------------------------------------------------------------
def test_the_study_gives_full_marks_to_a_model_that_follows_the_rules():
    scores = study(RuleModel(), CorpusSettings(), prompts=40, roles=("policy", "q", "v", *AGGREGATORS, "improvement"))
    assert set(scores) == {"policy", "q", "v", *AGGREGATORS, "improvement"}
    for role, score in scores.items():
        assert (score.prompts, score.parsed, score.true_claims) == (40, 1.0, 1.0), role
        if role in (*AGGREGATORS, "improvement"):
            assert score.exact == 1.0, role
        if role in AGGREGATORS:
            assert score.mean_absolute_error == pytest.approx(0, abs=0.005)


def test_the_study_sees_what_is_wrong(faulty_model):
    wrong = faulty_model(
        lambda request: "X wins at 1 2 3; O wins at 4.\nbest_move: 1\nfinal_evaluation: +1.00", {"empty": 0.3}
    )
    scores = study(wrong, CorpusSettings(), prompts=60, roles=("g1_games", "improvement"))
    assert scores["g1_games"].parsed < 0.9
    assert scores["g1_games"].exact < 0.6
    assert scores["g1_games"].mean_absolute_error > 0.4
    assert scores["improvement"].exact < 0.6
    assert scores["improvement"].true_claims < 0.9
