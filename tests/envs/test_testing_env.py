"""`check_env` accepts a sound foreign environment and finds, under its name, each promise that another one breaks."""

from __future__ import annotations

import random

import pytest

from nlrl import envs
from nlrl.envs.testing import Frame, GameTextEnv, TextEnv, check_env
from nlrl.testing import ScriptedGame

CAP = 12


class Climb(TextEnv):
    """Two climbers with a secret number each; a die is thrown with every step; whoever first climbs to 9 wins."""

    def __init__(self):
        self.rng = random.Random()
        self.history = []

    def draw(self, high):
        return self.rng.randrange(high)

    def reset(self, seed):
        if seed is not None:
            self.rng = random.Random(seed)
        self.heights, self.player, self.count, self.history = [0, 0], 0, 0, []
        self.cards = [f"card {100 + self.draw(400)}", f"card {500 + self.draw(400)}"]
        return self.frame(self.player)

    def step(self, reply):
        if reply not in self.moves():
            raise ValueError(f"{reply!r} is no move; legal: {self.moves()}")
        mover = self.player
        if reply == "climb":
            self.heights[mover] += 1 + self.draw(3)
        self.count, self.player = self.count + 1, 1 - mover
        self.history.append(reply)
        return self.frame(mover)

    def frame(self, mover):
        won, cut = max(self.heights) >= 9, self.count >= CAP
        over = won or cut
        player = mover if over else self.player
        return Frame(player, self.views()[player], (float(won), -float(won)), won, cut and not won)

    def moves(self):
        return ["climb", "rest"]

    def illegal(self):
        return ["fly", ""]

    def position(self):
        return tuple(self.heights), tuple(self.cards), self.player

    def views(self):
        return [f"{card}; {self.heights}; {' '.join(self.history)}" for card in self.cards]

    def secrets(self):
        return self.cards

    def legal_by_the_rules(self):
        return {"climb", "rest"}

    def stalling_reply(self):
        return "rest"

    def final_observation(self, seed, replies):
        other = type(self)()
        other.reset(seed)
        return [other.step(reply).observation for reply in replies][-1]


class Unseeded(Climb):
    def reset(self, seed):
        return super().reset(random.SystemRandom().randrange(1 << 30))


class IgnoresTheSeed(Climb):
    def reset(self, seed):
        return super().reset(7)


class KeepsItsHistory(Climb):
    """The wrapper that collects what a player was told, and goes on collecting in the next game."""

    def reset(self, seed):
        before, _ = self.history, super().reset(seed)
        self.history = before
        return self.frame(self.player)


class SharedGenerator(Climb):
    """All instances draw from one generator, which every reset seeds."""

    shared = random.Random()

    def draw(self, high):
        return self.shared.randrange(high)

    def reset(self, seed):
        if seed is not None:
            self.shared.seed(seed)
        return super().reset(seed)


class GlobalGenerator(Climb):
    def draw(self, high):
        return random.randrange(high)

    def reset(self, seed):
        if seed is not None:
            random.seed(seed)
        return super().reset(seed)


class SharedBoards(Climb):
    """A copy climbs on the original's heights."""

    def __deepcopy__(self, memo):
        clone = type(self)()
        clone.__dict__.update(self.__dict__, rng=random.Random())
        clone.rng.setstate(self.rng.getstate())
        return clone


class IllegalSkips(Climb):
    def step(self, reply):
        if reply not in self.moves():
            self.player = 1 - self.player
            return self.frame(self.player)
        return super().step(reply)


class GetsStuck(Climb):
    def moves(self):
        return [] if self.heights[self.player] == 4 else super().moves()

    def legal_by_the_rules(self):
        return self.moves()


class ForgetsAMove(Climb):
    def moves(self):
        return ["climb"]


class CallsACutAnEnd(Climb):
    def frame(self, mover):
        frame = super().frame(mover)
        return frame._replace(terminated=frame.done, truncated=False)


class SaysBoth(Climb):
    def frame(self, mover):
        frame = super().frame(mover)
        return frame._replace(terminated=frame.done)


class ShowsAllCards(Climb):
    def views(self):
        return [f"{self.cards} {view}" for view in super().views()]


class HidesOwnCard(Climb):
    def views(self):
        return [view.partition(";")[2] for view in super().views()]


class LosesTheEnd(Climb):
    def final_observation(self, seed, replies):
        return None


class ShowsTheNextGame(Climb):
    def final_observation(self, seed, replies):
        return type(self)().reset(seed).observation


def test_a_sound_environment_keeps_every_promise():
    report = check_env(Climb, "climb")
    assert [check for check in report if check.ok is not True] == []
    assert str(report).endswith("13 kept, 0 broken, 0 not applicable")


@pytest.mark.parametrize(
    ("make", "promise", "message"),
    [
        (Unseeded, "equal seeds give equal games", "the same seed gave another game: observation of frame 0"),
        (IgnoresTheSeed, "different seeds give different games", "the seed is ignored"),
        (KeepsItsHistory, "reset leaves nothing behind", "characters, not"),
        (SharedGenerator, "games stepped in turns leave one another alone", "stepped in turns with others"),
        (SharedGenerator, "games are the same in worker threads", "1 worker thread(s)"),
        (GlobalGenerator, "games stepped in turns leave one another alone", "stepped in turns with others"),
        (GlobalGenerator, "global random generators are untouched", "reset used or seeded"),
        (SharedBoards, "a copy is independent", "the original goes on differently"),
        (IllegalSkips, "illegal replies change nothing", "the illegal reply 'fly' changed the position"),
        (GetsStuck, "whoever is to move has a move", "nobody can move, yet the game is not over"),
        (ForgetsAMove, "moves are those of the rules", "at step 0 1 moves are legal, 2 by the rules; missing ['rest']"),
        (CallsACutAnEnd, "truncation differs from an end", "cut after 12 steps: terminated=True, truncated=False"),
        (SaysBoth, "truncation differs from an end", "terminated=True, truncated=True"),
        (ShowsAllCards, "each player sees its own view", "player 0 is shown player 1's"),
        (HidesOwnCard, "each player sees its own view", "player 0 is not shown its own"),
        (LosesTheEnd, "the terminal observation survives auto-reset", "is lost"),
        (ShowsTheNextGame, "the terminal observation survives auto-reset", "kept 'card"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_broken_promise_is_found_under_its_name(make, promise, message):
    report = check_env(make)
    assert report[promise].ok is False
    assert message in report[promise].message
    assert not report.ok


def test_other_promises_of_a_broken_environment_are_still_asked():
    report = check_env(CallsACutAnEnd)
    assert [check.promise for check in report.failed] == ["truncation differs from an end"]


def test_an_environment_that_raises_breaks_a_promise_and_stops_nothing():
    class Raises(Climb):
        def views(self):
            if self.count == 3:
                raise RuntimeError("no view")
            return super().views()

    report = check_env(Raises)
    assert len(report) == 13
    assert report["equal seeds give equal games"].message == "raised RuntimeError('no view')"


class Bare(TextEnv):
    """Only what must be there."""

    chance = False

    def reset(self, seed):
        self.left = 3
        return Frame(0, "3 left")

    def step(self, reply):
        self.left -= int(reply)
        return Frame(0, f"{self.left} left", (1.0,), terminated=self.left <= 0)

    def moves(self):
        return ["1", "2"]


def test_what_a_wrapper_cannot_tell_is_not_applicable():
    report = check_env(Bare)
    assert report.ok
    assert {check.promise: check.message for check in report if check.ok is None} == {
        "different seeds give different games": "nothing is drawn at random",
        "illegal replies change nothing": "no illegal replies are known",
        "moves are those of the rules": "there is nothing to compare the rules with",
        "truncation differs from an end": "the game cannot be drawn out",
        "each player sees its own view": "nothing is hidden",
        "the terminal observation survives auto-reset": "the library has no auto-resetting driver",
    }


# -- our own games under the same questions ----------------------------------------------------------------------------
@pytest.mark.parametrize("spec", ["tictactoe", "frozen_lake", "maze", "maze(observed=partial)"])
def test_our_games_keep_the_promises_asked_of_others(spec):
    assert check_env(lambda: GameTextEnv(envs.make_from_spec(spec)), more_games=5).failed == ()


def test_a_cut_game_is_truncated_and_paid_for():
    class Short(ScriptedGame):
        max_length = 1
        truncation_reward = -0.5

        def __init__(self):
            super().__init__({"a": {"on": "b"}, "b": {"on": "c"}, "c": 1.0})
            self.max_length = 1

    env = GameTextEnv(Short())
    env.reset(0)
    assert env.step("on") == Frame(0, "b", (-0.5,), terminated=False, truncated=True)


def test_a_reply_without_a_move_is_refused_or_charged():
    env = GameTextEnv(envs.make("tictactoe"))
    start = env.reset(0)
    with pytest.raises(ValueError, match="'10' is not a legal move; legal: 1 2 3"):
        env.step("10")
    assert env.views()[0] == start.observation

    maze = GameTextEnv(envs.make("maze"))
    before = maze.reset(0), maze.position()
    assert maze.step("nonsense").rewards[0] < 0
    assert maze.position() == before[1]
