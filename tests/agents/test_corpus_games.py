"""The corpus of every game keeps the promises of Tic-Tac-Toe's (test_corpus.py): it teaches to read and to count."""

from __future__ import annotations

import math
import re
from collections import Counter
from functools import cache
from itertools import islice

import pytest

from nlrl.agents.corpus import MIXTURE, CorpusSettings, StateSampler, examples
from nlrl.agents.corpus import states as corpus_states
from nlrl.agents.corpus.states import is_held_out, states_by_ply
from nlrl.agents.corpus.stream import EXAMPLES_A_SEED, name_of
from nlrl.agents.corpus.study import ROLE_OF, study, text_agrees
from nlrl.agents.corpus.writers import MOST_CANDIDATES
from nlrl.agents.language import language_of, load_phrases
from nlrl.agents.metrics.claims import check_claims
from nlrl.agents.metrics.leaks import find_leaks, strip_leaks
from nlrl.agents.parser import ParseFailure
from nlrl.agents.roles import Roles
from nlrl.backbones.language_model import Completion
from nlrl.envs import make_from_spec
from nlrl.envs.maze.grid import Grid
from nlrl.envs.random import derive_seed
from nlrl.errors import NLRLError

FIRM = "frozen_lake(layout=random,maps=60,slippery=False)"
SLIPPERY = "frozen_lake(layout=random,maps=60)"
MAZE = "maze"
MAZES = "maze(layout=generated,width=7,height=7,loops=0.5,seed=*)"
LAKES = (FIRM, SLIPPERY)
WALKS = (*LAKES, MAZE, MAZES)
PARTIAL, BREAKTHROUGH = "maze(observed=partial)", "breakthrough(rows=5,columns=5)"
SPECS = (*WALKS, PARTIAL, BREAKTHROUGH)
VALUES = ("q", "v", "g1_games", "g1_outlooks", "g2")
READERS = ("descriptor", "reader")
NUMBER = re.compile(r"[+-]\d\.\d\d")
every_game = pytest.mark.parametrize("spec", SPECS)


def take(spec, count, *roles, seed=5, **settings):
    return list(islice(examples(CorpusSettings(spec, roles=roles, **settings), seed), count))


@cache
def stream(spec):
    """The beginning of a game's corpus, written once for all tests."""
    return take(spec, 400 if spec in (PARTIAL, BREAKTHROUGH) else 1000)


def of_role(spec, *roles):
    return [example for example in stream(spec) if example.role in roles]


def prompt(example):
    return example.messages[-1].content


def said(example):
    """The machine-readable verdict."""
    return float(re.fullmatch(r"(?s).*\nfinal_evaluation: ([+-]\d\.\d\d)", example.completion)[1])


def items(example, label):
    return [text for _, text in re.findall(rf"^{label} (\d): (.*)$", prompt(example), re.MULTILINE)]


made = cache(make_from_spec)


def game_of(example):
    return made(example.game)


# -- form --------------------------------------------------------------------------------------------------------------
@every_game
def test_every_example_parses_back_to_its_answer(spec):
    roles, seen = {}, Counter()
    for example in stream(spec):
        seen[example.role] += 1
        assert name_of(example.game) == name_of(spec)
        if example.role in READERS:
            assert example.answer is None
            continue
        known = roles.setdefault(example.game, Roles(game_of(example)))
        output = getattr(known, ROLE_OF.get(example.role, example.role)).parse(
            example.inp, Completion(example.completion)
        )
        assert not isinstance(output, ParseFailure), (output, example.completion)
        moved = example.role in ("policy", "improvement")
        assert (output.action if moved else output.verdict) == pytest.approx(example.answer, abs=0.0051)
    assert set(seen) == set(MIXTURE)


@every_game
def test_prompts_are_the_roles_own(spec):
    for example in of_role(spec, *(role for role in MIXTURE if role not in READERS))[:150]:
        role = getattr(Roles(game_of(example)), ROLE_OF.get(example.role, example.role))
        assert example.messages == role.messages(example.inp)


@every_game
def test_equal_seeds_give_equal_streams_and_workers_different_ones(spec):
    first, again = ([prompt(e) + e.completion for e in take(spec, 60, seed=seed)] for seed in (1, 1))
    assert first == again
    second = [prompt(e) + e.completion for e in islice(examples(CorpusSettings(spec), 1, worker=1), 60)]
    assert len(set(first) & set(second)) < 20


# -- truth -------------------------------------------------------------------------------------------------------------
@every_game
def test_what_texts_claim_about_the_position_is_true(spec):
    claimed = 0
    for example in of_role(spec, *(role for role in MIXTURE if role not in ("g2", *READERS))):
        game, action = game_of(example), getattr(example.inp, "action", None)
        texts = [(example.completion, action)]
        texts += [(evaluation.text, move) for move, evaluation in getattr(example.inp, "candidates", ())]
        for text, move in texts:
            claims = check_claims(text, game, example.inp.state, move)
            claimed += len(claims)
            assert all(claim.true for claim in claims), (text, prompt(example), claims)
    assert claimed > 300


@every_game
def test_words_belong_to_the_number_they_stand_beside(spec):
    bands = load_phrases(name_of(spec))["bands"]
    for example in of_role(spec, *VALUES):
        assert text_agrees(example.completion, said(example), bands)


@every_game
def test_roles_without_evidence_cite_none_and_what_g1_says_survives_without_it(spec):
    for example in of_role(spec, "policy", "q", "v", "improvement"):
        assert not find_leaks(example.completion), example.completion
    for example in of_role(spec, "g1_games", "g1_outlooks"):
        kept = strip_leaks(example.completion)
        assert kept
        assert f"final_evaluation: {NUMBER.findall(example.completion)[-1]}" in kept


# -- nothing about how to play -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("spec", WALKS)
def test_the_base_policy_is_uniform(spec):
    counts = Counter(example.answer for example in take(spec, 2000, "policy", seed=6))
    assert sum((count - 500) ** 2 / 500 for count in counts.values()) < 16.3  # 0.999 quantile, 3 degrees of freedom


@pytest.mark.parametrize("spec", WALKS)
def test_the_critics_verdicts_are_noise_unless_the_move_ends_the_game(spec):
    open_moves, ends = [], 0
    for example in take(spec, 1500, "q"):
        game, state, action = game_of(example), example.inp.state, example.inp.action
        steps = game.transitions(state, action)
        if all(game.is_terminal(step.state) for step in steps):
            ends += 1
            expected = sum(step.probability * language_of(game).score_at(step.state, 1) for step in steps)
            assert example.answer == pytest.approx(expected, abs=0.0051)
        else:
            open_moves.append(example.answer)
    assert ends > 5
    assert abs(sum(open_moves) / len(open_moves)) < 4 * 0.75 / len(open_moves) ** 0.5


@pytest.mark.parametrize("spec", [BREAKTHROUGH, FIRM, MAZE])
def test_no_example_asks_an_oracle_or_searches_the_maze(spec, monkeypatch):
    from nlrl.envs import oracle

    def refuse(*args, **options):
        raise AssertionError("the corpus asked a solver")

    class Membership(dict):
        __getitem__ = get = values = items = refuse

    init = Grid.__init__

    def make_grid(grid, layout):
        init(grid, layout)
        grid.distance = Membership(grid.distance)

    monkeypatch.setattr(oracle, "oracle_for", refuse)
    monkeypatch.setattr(Grid, "__init__", make_grid)
    monkeypatch.setattr(Grid, "shortest_path", refuse)
    for game in ("envs.game.Game", "envs.maze.Maze", "envs.breakthrough.Breakthrough"):
        monkeypatch.setattr(f"nlrl.{game}.make_oracle", refuse)
    corpus_states._listed.cache_clear()
    assert len(take(spec, 200)) == 200


# -- held-out positions ------------------------------------------------------------------------------------------------
def shown(example):
    """The board that a prompt shows, cut out of it without the example's state."""
    text = prompt(example).split("\n", 1)[1]
    return re.split(r"\n(?:moves?\b|steps: |game 1: |outlook 1: )", text)[0]


@every_game
@pytest.mark.parametrize("held_out", [False, True])
def test_held_out_positions_never_appear_in_training_prompts_and_others_never_in_held_out_ones(spec, held_out):
    openings = 0
    for example in take(spec, 120, seed=9, held_out=held_out):
        chosen = derive_seed("held-out", shown(example)) / 2**64 < corpus_states.HELD_OUT_SHARE
        if chosen and not held_out:  # the first plies of a game for two are everybody's
            assert game_of(example).num_players == 2
            openings += 1
        else:
            assert chosen == held_out
    assert openings < 12


def test_positions_of_games_for_one_are_held_out_wherever_they_lie():
    game = make_from_spec(BREAKTHROUGH)
    assert not is_held_out(game, game.initial_states()[0], 0)
    lake = make_from_spec(FIRM)
    states = [state for layer in states_by_ply(lake.spec).values() for state in layer]
    train, test = (set(StateSampler(lake, held_out).all()) for held_out in (False, True))
    assert train | test == set(states)
    assert not train & test
    assert len(test) / len(states) == pytest.approx(corpus_states.HELD_OUT_SHARE, abs=0.03)
    assert any(is_held_out(lake, state, 0) for state in lake.initial_states())


def test_large_games_are_not_listed_and_tiny_ones_may_have_nothing_held_out():
    with pytest.raises(NLRLError, match="20,000 states"):
        states_by_ply(BREAKTHROUGH)
    tiny = "maze(layout=#####/#..G#/#####)"
    with pytest.raises(NLRLError, match="held out"):
        StateSampler(make_from_spec(tiny), held_out=True)
    mixed = CorpusSettings(held_out=True, games=((tiny, 0.9), (MAZE, 0.1)))
    assert {example.game for example in islice(examples(mixed, 0), 30)} == {make_from_spec(MAZE).spec}
    with pytest.raises(NLRLError, match="no position is held out"):
        next(examples(CorpusSettings(held_out=True, games=((tiny, 1.0),)), 0))


# -- aggregators follow the evidence in their prompt -------------------------------------------------------------------
@pytest.mark.parametrize("spec", LAKES)
def test_g1_counts_the_walks_that_reach_the_goal(spec):
    ends = Counter()
    for example in take(spec, 300, "g1_games"):
        results = [text.rpartition(", ")[2] for text in items(example, "game")]
        ends.update(results)
        reached = results.count("reached the goal")
        assert said(example) == pytest.approx((2 * reached - len(results)) / len(results), abs=0.0051)
    assert set(ends) == {"reached the goal", "fell into a hole", "out of steps", "player forfeits"}
    assert ends["player forfeits"] < 0.05 * sum(ends.values())


@pytest.mark.parametrize("spec", [MAZE, MAZES])
def test_g1_averages_the_scores_that_walks_end_with(spec):
    verdicts = []
    for example in take(spec, 300, "g1_games"):
        texts = items(example, "game")
        scores = [float(NUMBER.findall(text)[-1]) for text in texts]
        for text, score in zip(texts, scores, strict=True):
            steps = re.search(r"\bthere in (\d+) step", text)
            arrived = steps is not None and "not there" not in text
            assert score == pytest.approx(
                1 - 2 * math.log(1 + int(steps[1])) / math.log(101) if arrived else -1, abs=0.0051
            )
        assert said(example) == pytest.approx(sum(scores) / len(scores), abs=0.0051)
        verdicts.append(said(example))
    assert min(verdicts) == -1
    assert max(verdicts) > 0.3
    assert sum(verdict > -0.9 for verdict in verdicts) > 0.35 * len(verdicts)  # what there is to average is not all -1


@pytest.mark.parametrize("spec", WALKS)
def test_g1_averages_the_outlooks_of_its_prompt(spec):
    for example in of_role(spec, "g1_outlooks"):
        numbers = [float(NUMBER.findall(text)[-1]) for text in items(example, "outlook")]
        assert said(example) == pytest.approx(sum(numbers) / len(numbers), abs=0.0101)


def steps_and_then(example):
    return [re.findall(rf"^{word}: (.*)$", prompt(example), re.MULTILINE)[0] for word in ("steps", "then")]


@pytest.mark.parametrize("spec", LAKES)
def test_g2_on_ice_keeps_the_verdict_of_what_follows(spec):
    over = Counter()
    for example in take(spec, 400, "g2"):
        steps, then = steps_and_then(example)
        if then == "the game is over.":
            end = steps.rpartition(", ")[2]
            over[end] += 1
            assert said(example) == (1 if end == "reached the goal" else -1)
        else:
            assert "," not in steps
            assert said(example) == float(NUMBER.findall(then)[-1])
    assert set(over) == {"reached the goal", "fell into a hole", "out of steps"}


@pytest.mark.parametrize("spec", [MAZE, MAZES])
def test_g2_in_mazes_adds_the_steps_to_what_follows(spec):
    longest = 0
    for example in take(spec, 400, "g2"):
        steps, then = steps_and_then(example)
        taken = sum(int(count) for count in re.findall(r"\b[LRUDx](\d+)", steps))
        assert f"{taken} step" in example.completion
        if then == "the game is over.":
            assert said(example) == float(NUMBER.findall(steps)[-1])
            continue
        longest = max(longest, taken)
        verdict = float(NUMBER.findall(then)[-1])
        follow = math.exp((1 - verdict) / 2 * math.log(101)) - 1
        expected = max(-1.0, 1 - 2 * math.log(1 + follow + taken) / math.log(101)) if verdict > -1 else -1
        assert said(example) == pytest.approx(expected, abs=0.0051)
    assert longest == 6


@every_game
def test_i_chooses_the_first_of_the_best_evaluated_candidates_and_names_the_second(spec):
    for example in of_role(spec, "improvement"):
        ranked = sorted(example.inp.candidates, key=lambda candidate: -candidate[1].verdict)
        assert len(ranked) <= MOST_CANDIDATES
        assert example.answer == ranked[0][0]
        shown = [float(number) for number in NUMBER.findall(example.completion)]
        assert shown == [evaluation.verdict for _, evaluation in ranked[:2]]


@every_game
def test_retellings_and_readings_say_what_their_prompts_show(spec):
    for example in of_role(spec, *READERS):
        content = language_of(game_of(example)).content(example.completion)
        assert content
        if name_of(spec) == "frozen_lake" and example.role == "descriptor":
            wanted = re.findall(r"\b([LDRU])(?:>([LDRU]))?(?!\w)", prompt(example).rpartition("moves: ")[2])
            words = dict(zip("LDRU", ("left", "down", "right", "up"), strict=True))
            told = [pair for pair in content if ">" in pair]
            expected = []
            for want, slid in wanted:
                expected += [f"{words[want]}>"] + ([f">{words[slid]}"] if slid else [])
            assert told == expected


# -- several games -----------------------------------------------------------------------------------------------------
def test_games_are_mixed_in_their_shares_and_families_change_their_member():
    settings = CorpusSettings(games=((FIRM, 0.25), (MAZES, 0.5), ("tictactoe", 0.25)))
    found = list(islice(examples(settings, 3), 3 * EXAMPLES_A_SEED))
    shares = Counter(name_of(example.game) for example in found)
    assert shares["maze"] / len(found) == pytest.approx(0.5, abs=0.05)
    assert shares["tictactoe"] / len(found) == pytest.approx(0.25, abs=0.05)
    members = [example.game for example in found if name_of(example.game) == "maze"]
    assert len(set(members)) == -(-len(members) // EXAMPLES_A_SEED)
    assert [e.completion for e in found[:50]] == [e.completion for e in islice(examples(settings, 3), 50)]
    assert settings.of_game("maze").games == ((MAZES, 0.5),)


class Echo:
    """Answers each prompt as its writer did."""

    name, reads_expectations = "echo", False

    def __init__(self, settings, seed):
        self.known = {e.messages: e.completion for e in islice(examples(settings, seed), 3000)}

    def generate(self, requests):
        return [Completion(self.known.get(request.messages, "?")) for request in requests]


@pytest.mark.parametrize("games", [((SLIPPERY, 0.5), (FIRM, 0.5)), ((MAZE, 0.5), (MAZES, 0.5))], ids=["lakes", "mazes"])
def test_the_study_gives_full_marks_to_right_answers(games):
    held_out = CorpusSettings(held_out=True, games=games)
    scores = study(Echo(held_out, 4), CorpusSettings(games=games), prompts=10, seed=4)
    assert set(scores) == set(MIXTURE)
    for role, score in scores.items():
        assert (score.prompts, score.parsed, score.true_claims) == (10, 1.0, 1.0), role
        assert score.exact in (1.0, None), role
