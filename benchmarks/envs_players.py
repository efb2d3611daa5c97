"""Random play with each library, in the fewest calls that it allows: `make_...() -> Play`, games in, steps out.

A step is asking for the legal moves, choosing one and playing it; *with text* it is also the text of the position and
of every legal move. Makers of libraries that are not installed raise ImportError.
"""

from __future__ import annotations

import random
from typing import Any

from nlrl import envs
from nlrl.benchmarks.timing import Play
from nlrl.envs.batched import make_batched


# -- ours --------------------------------------------------------------------------------------------------------------
def ours(spec: str) -> Play:
    """One game at a time."""
    game, uniform = envs.make_from_spec(spec), random.Random(0).random
    initial_states, legal_actions, apply = game.initial_states, game.legal_actions, game.apply

    def play(games: int) -> int:
        steps = 0
        for _ in range(games):
            state = initial_states()[0]
            while legal := legal_actions(state):
                state = apply(state, legal[int(uniform() * len(legal))]).state
                steps += 1
        return steps

    return play


def ours_with_text(spec: str) -> Play:
    """Breakthrough names all legal moves of a position at once; Tic-Tac-Toe one by one."""
    game = envs.make_from_spec(spec)
    return _named_at_once(game) if hasattr(game, "legal_moves") else _named_one_by_one(game)


def _named_one_by_one(game: Any) -> Play:
    uniform, initial_states, legal_actions = random.Random(0).random, game.initial_states, game.legal_actions
    apply, to_text, action_text = game.apply, game.to_text, game.action_text

    def play(games: int) -> int:
        steps = 0
        for _ in range(games):
            state = initial_states()[0]
            while legal := legal_actions(state):
                to_text(state)
                [action_text(state, action) for action in legal]
                state = apply(state, legal[int(uniform() * len(legal))]).state
                steps += 1
        return steps

    return play


def _named_at_once(game: Any) -> Play:
    uniform, initial_states, legal_moves = random.Random(0).random, game.initial_states, game.legal_moves
    apply, to_text = game.apply, game.to_text

    def play(games: int) -> int:
        steps = 0
        for _ in range(games):
            state = initial_states()[0]
            while moves := legal_moves(state):
                to_text(state)
                state = apply(state, list(moves)[int(uniform() * len(moves))]).state
                steps += 1
        return steps

    return play


def ours_batched(spec: str, size: int) -> Play:
    """`size` games at once, legal moves drawn uniformly; a piece of work is one step of all."""
    batch = make_batched(envs.make_from_spec(spec), size)

    def play(steps: int) -> int:
        for _ in range(steps):
            batch.step(batch.random_actions())
        return steps * size

    return play


# -- OpenSpiel ---------------------------------------------------------------------------------------------------------
def openspiel(spec: str) -> Play:
    import pyspiel

    game, uniform = pyspiel.load_game(spec), random.Random(0).random

    def play(games: int) -> int:
        steps = 0
        for _ in range(games):
            state = game.new_initial_state()
            while legal := state.legal_actions():
                state.apply_action(legal[int(uniform() * len(legal))])
                steps += 1
        return steps

    return play


def openspiel_with_text(spec: str) -> Play:
    import pyspiel

    game, uniform = pyspiel.load_game(spec), random.Random(0).random

    def play(games: int) -> int:
        steps = 0
        for _ in range(games):
            state = game.new_initial_state()
            while legal := state.legal_actions():
                str(state)
                [state.action_to_string(action) for action in legal]
                state.apply_action(legal[int(uniform() * len(legal))])
                steps += 1
        return steps

    return play


# -- PettingZoo --------------------------------------------------------------------------------------------------------
def pettingzoo_tictactoe() -> Play:
    """It has no text: `last()` gives planes and a mask."""
    from pettingzoo.classic import tictactoe_v3

    env, uniform = tictactoe_v3.env(), random.Random(0).random

    def play(games: int) -> int:
        steps = 0
        for _ in range(games):
            env.reset()
            while True:
                observation, _, terminated, truncated, _ = env.last()
                if terminated or truncated:
                    break
                legal = observation["action_mask"].nonzero()[0]
                env.step(legal[int(uniform() * len(legal))])
                steps += 1
        return steps

    return play


# -- TextArena ---------------------------------------------------------------------------------------------------------
def textarena_tictactoe() -> Play:
    """Without wrappers; its observation lists the legal moves."""
    from textarena.envs.TicTacToe.env import TicTacToeEnv

    return _textarena(TicTacToeEnv(), lambda env, board: [f"[{i}]" for i in range(9) if not board[i // 3][i % 3]])


def textarena_breakthrough(size: int) -> Play:
    """Without wrappers; it lists no legal moves, so they are found by asking about each, as an agent would have to."""
    from textarena.envs.Breakthrough.env import BreakthroughEnv

    return _textarena(BreakthroughEnv(board_size=size), _textarena_breakthrough_moves)


def _textarena_breakthrough_moves(env: Any, board: list[list[str]]) -> list[str]:
    player, size, moves = env.state.current_player_id, len(board), []
    pawn, ahead = ("W", 1) if player == 0 else ("B", -1)
    for row in range(size):
        for column in range(size):
            if board[row][column] == pawn:
                for to in range(max(0, column - 1), min(size, column + 2)):
                    if env._is_valid_move(player, row, column, row + ahead, to):
                        moves.append(f"[{'abcdefgh'[column]}{row + 1}{'abcdefgh'[to]}{row + ahead + 1}]")
    return moves


def _textarena(env: Any, legal_moves: Any) -> Play:
    uniform = random.Random(0).random

    def play(games: int) -> int:
        steps = 0
        for _ in range(games):
            env.reset(num_players=2)
            done = False
            while not done:
                env.get_observation()
                legal = legal_moves(env, env.state.game_state["board"])
                if not legal:  # its Breakthrough has positions without a move that are not over
                    break
                done, _ = env.step(legal[int(uniform() * len(legal))])
                steps += 1
        return steps

    return play


# -- pgx ---------------------------------------------------------------------------------------------------------------
def pgx_tictactoe(size: int, steps_per_call: int = 100) -> Play:
    """`size` games at once on JAX, finished ones restarted; a piece of work is `steps_per_call` steps of all."""
    import jax
    import jax.numpy as jnp
    import pgx
    from pgx.experimental import auto_reset

    env = pgx.make("tic_tac_toe")
    init, step = jax.vmap(env.init), jax.vmap(auto_reset(env.step, env.init))

    def one(carry: Any, _: Any) -> tuple[Any, None]:
        state, key = carry
        key, choice, chance = jax.random.split(key, 3)
        action = jax.random.categorical(choice, jnp.where(state.legal_action_mask, 0.0, -jnp.inf))
        return (step(state, action, jax.random.split(chance, size)), key), None

    run = jax.jit(lambda carry: jax.lax.scan(one, carry, None, length=steps_per_call)[0])
    carry = jax.jit(init)(jax.random.split(jax.random.key(0), size)), jax.random.key(1)

    def play(calls: int) -> int:
        nonlocal carry
        for _ in range(calls):
            carry = run(carry)
        jax.block_until_ready(carry[0].rewards)
        return calls * steps_per_call * size

    return play
