"""Checks of a foreign game's rules and of what it shows: replies, turns, endings, views."""

from __future__ import annotations

from nlrl.envs.random import Rng
from nlrl.envs.testing.env_play import STUCK, Plan, env_after, play, short
from nlrl.envs.testing.foreign import Frame, TextEnv
from nlrl.envs.testing.report import NotApplicable, require

_MAX_STALL = 1000
"""Steps after which a game that is drawn out is taken to have no cap."""


def illegal_changes_nothing(plan: Plan) -> None:
    """An illegal reply raises ValueError or is refused; it may be counted and may forfeit, but it moves nothing."""
    for seed in plan.seeds:
        for moves in (0, 2):
            for reply in env_after(plan, seed, moves)[0].illegal():
                _check_illegal(*env_after(plan, seed, moves), reply)


def _check_illegal(env: TextEnv, frame: Frame, reply: str) -> None:
    before = env.position()
    if frame.done:
        return
    try:
        answer = env.step(reply)
    except ValueError:
        answer = frame
    require(env.position() == before, f"the illegal reply {reply!r} changed the position")
    kept = answer.done or answer.player == frame.player
    require(kept, f"after the illegal reply {reply!r} it is the turn of player {answer.player}")


def somebody_can_move(plan: Plan) -> None:
    stuck = [
        (seed, len(frames) - 2)
        for seed in plan.more_seeds
        if (frames := tuple(play(plan.make(), seed, plan, choices=seed)))[-1] is STUCK
    ]
    first = f", first with seed {stuck[0][0]} after {stuck[0][1]} moves" if stuck else ""
    require(not stuck, f"{STUCK.observation}: {len(stuck)} of {len(plan.more_seeds)} games{first}")


def rules_of_the_game(plan: Plan) -> None:
    for seed in plan.seeds:
        env, rng = plan.make(), Rng("replies", seed)
        frame, step = env.reset(seed), 0
        while not frame.done and step < plan.max_steps and (moves := env.moves()):
            legal = set(env.legal_by_the_rules())
            missing, extra = sorted(legal - set(moves)), sorted(set(moves) - legal)
            message = f"at step {step} {len(moves)} moves are legal, {len(legal)} by the rules"
            require(not missing and not extra, f"{message}; missing {missing[:3]}, extra {extra[:3]}")
            frame, step = env.step(rng.choice(moves)), step + 1


def truncation_is_told(plan: Plan) -> None:
    """A game that only a cap has ended is reported as truncated, and not as ended by its rules."""
    env = plan.make()
    frame, steps = env.reset(plan.seeds[0]), 0
    while not frame.done and steps < _MAX_STALL:
        frame, steps = env.step(env.stalling_reply()), steps + 1
    if not frame.done:
        raise NotApplicable(f"no cap within {_MAX_STALL} steps")
    message = f"cut after {steps} steps: terminated={frame.terminated}, truncated={frame.truncated}"
    require(frame.truncated and not frame.terminated, message)


# -- what is shown -----------------------------------------------------------------------------------------------------
def own_views(plan: Plan) -> None:
    for seed in plan.seeds:
        env, rng = plan.make(), Rng("replies", seed)
        frame = env.reset(seed)
        for step in range(plan.max_steps):
            if frame.done or not (moves := env.moves()):
                break
            _check_views(env, f"seed {seed}, step {step}")
            frame = env.step(rng.choice(moves))


def _check_views(env: TextEnv, where: str) -> None:
    secrets = env.secrets()
    for player, view in enumerate(env.views()):
        for owner, secret in enumerate(secrets):
            shown, own = bool(secret) and secret in view, owner == player
            require(shown or not own or not secret, f"player {player} is not shown its own {secret!r} ({where})")
            require(own or not shown, f"player {player} is shown player {owner}'s {secret!r} ({where})")


def terminal_observation(plan: Plan) -> None:
    """What the auto-resetting driver keeps of the last frame is what plain stepping shows."""
    for seed in plan.seeds:
        env, rng = plan.make(), Rng("replies", seed)
        frame, replies = env.reset(seed), []
        while not frame.done and len(replies) < plan.max_steps and (moves := env.moves()):
            replies.append(rng.choice(moves))
            frame = env.step(replies[-1])
        if frame.done:
            kept = env.final_observation(seed, replies)
            require(kept is not None, f"the last observation of a game of {len(replies)} steps is lost")
            require(kept == frame.observation, f"kept {short(kept)}, not {short(frame.observation)}")
