"""The load of a game platform, taken from the records of a run; a part of `nlrl bench serve`.

1. A run's records say which roles were asked what, in which order: every turn of the policy, every text of G1, every
   evaluation of the critic and choice of I. From them the prompts are written again, with the answers' lengths. By
   default they are those of style `instruct` (rules, instructions, worked example, board, evidence), as chat models get
   them; the situations, the groups and the lengths are the run's.
2. A request's segments are the instructions, the board, the rest; the first two end in marks, and so does the whole
   prompt where several answers to it are drawn.
3. Served: clients, each with a batch under way, as rollout workers ask. Offline: all requests in one call. Without
   reuse: every prompt begins with tokens of its own, so that nothing can be shared; lengths and answers' lengths are
   the same. Before each round the weights are exchanged (for themselves), which empties the cache of prefixes: it is
   filled anew every round, as after every iteration of a run.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import nlrl
from nlrl.benchmarks.figures import Figure
from nlrl.benchmarks.timing import ratio

MODELS = ("hymba-base", "bimamba-base")
CONTEXT = 4096
CLIENTS = 8
STRETCH = 8
"""Requests that are neighbours in the records, where not all are taken."""
WARM_UP = 16
"""Requests of the round that does not count, on a CPU."""
NONCE = 4
"""Tokens of its own that a prompt begins with where nothing is to be shared."""


@dataclass(frozen=True)
class Ask:
    """One prompt of a run, in segments, and how long the answer was."""

    segments: tuple[str, ...]
    answer: str


# -- what a run asked --------------------------------------------------------------------------------------------------
def record(folder: Path, games: int) -> Path:
    """Makes a short run and returns its folder."""
    config = Path(nlrl.__file__).parent / "configs" / "demo.toml"
    command = [sys.executable, "-m", "nlrl.orchestration.cli", "run", str(config), "--out", str(folder)]
    command += ["--iterations", "1", "--rollout.games", str(games), "--evaluation.games", "2", "--trackers"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return folder


def asks(run: Path, style: str) -> list[Ask]:
    """Everything that a run's records say was asked, in the order of its stages."""
    from nlrl.agents.roles import Roles
    from nlrl.envs import make
    from nlrl.orchestration.config import load_config
    from nlrl.orchestration.run_folder import RunFolder

    config = load_config(run / "config.toml").game
    game = make(config.name, **config.params)
    reader = _Reader(game, Roles(game, style))
    order = ("rollout", "targets", "improvement")
    stages = [stage for stage in RunFolder(run).stages() if stage.name in order]
    stages.sort(key=lambda stage: (stage.iteration, order.index(stage.name)))
    return [ask for stage in stages for found in stage.records() for ask in getattr(reader, stage.name)(found)]


class _Reader:
    """Records back to prompts."""

    def __init__(self, game, roles):
        self.game, self.roles = game, roles

    def rollout(self, record: dict[str, Any]) -> Iterator[Ask]:
        from nlrl.agents.roles import StateInput

        state, replies = self.game.parse_text(record["start"]), {turn["ply"]: turn["reply"] for turn in record["turns"]}
        for ply, action in enumerate(record["actions"]):
            if ply in replies:
                yield self._ask(self.roles.policy, StateInput(state), replies[ply])
            state = self.game.apply(state, action).state

    def targets(self, record: dict[str, Any]) -> Iterator[Ask]:
        from nlrl.agents.roles import SamplesInput

        state = self.game.parse_text(record["state"])
        inp = SamplesInput(state, record["action"], tuple(record["samples"]), record["evidence"])
        yield self._ask(self.roles.g1, inp, record["text"])

    def improvement(self, record: dict[str, Any]) -> Iterator[Ask]:
        from nlrl.agents.roles import ActionInput, CandidatesInput, Evaluation

        state, offers = self.game.parse_text(record["state"]), record["candidates"]
        for offer in offers:
            yield self._ask(self.roles.q, ActionInput(state, offer["action"]), offer["text"])
        found = tuple((offer["action"], Evaluation(offer["text"], offer["verdict"])) for offer in offers)
        if found:
            yield self._ask(self.roles.improvement, CandidatesInput(state, found), record["text"])

    def _ask(self, role, inp, answer: str) -> Ask:
        *system, user = (message.content for message in role.messages(inp))
        board = self.game.to_text(inp.state)
        end = user.index(board) + len(board)
        instructions = [f"<bos>{system[0]}\n", user[:end]] if system else [f"<bos>{user[:end]}"]
        return Ask((*instructions, f"{user[end:]}<answer>"), answer)


# -- requests ----------------------------------------------------------------------------------------------------------
def requests_of(found: Sequence[Ask], tokenizer, reuse: bool) -> list:
    """Requests for an engine; reuse: with marks, else with beginnings that no two share."""
    from nlrl.backbones.language_model import Request, Sampling
    from nlrl.backbones.prompts import encode_texts

    texts = list(dict.fromkeys(text for ask in found for text in (*ask.segments, ask.answer)))
    tokens = {text: tuple(ids) for text, ids in zip(texts, encode_texts(tokenizer, texts), strict=True)}
    out = []
    for number, ask in enumerate(found):
        parts = [tokens[segment] for segment in ask.segments]
        prompt = tuple(token for part in parts for token in part)
        marks = (len(parts[0]), len(prompt) - len(parts[-1]), len(prompt)) if reuse else ()
        sampling = Sampling(temperature=1.0, max_tokens=len(tokens[ask.answer]) + 1, ignore_end=True)
        out.append(
            Request(tokens=prompt if reuse else own(prompt, number), sampling=sampling, seed=number, marks=marks)
        )
    return out


def own(prompt: tuple[int, ...], number: int) -> tuple[int, ...]:
    """The prompt with a beginning of its own, of the same length."""
    digits = tuple(5 + number // 256**place % 256 for place in range(NONCE))
    return (*digits, *prompt[NONCE:])


def spread(found: Sequence[Ask], count: int) -> list[Ask]:
    """About so many of them, in order, in stretches of neighbours: groups stay together."""
    if count >= len(found):
        return list(found)
    stretches = max(1, count // STRETCH)
    length, step = count // stretches, len(found) // stretches
    return [ask for start in range(0, stretches * step, step) for ask in found[start : start + length]]


# -- figures -----------------------------------------------------------------------------------------------------------
def compare(run: Path, style: str, count: int, device: str, rounds: int, names: Sequence[str] = MODELS) -> list[Figure]:
    """Figures of the backbones that no other engine serves, in the sizes of the bundled bases, random weights."""
    return [figure for name in names for figure in _figures(name, run, style, count, device, rounds)]


def _figures(name: str, run: Path, style: str, count: int, device: str, rounds: int) -> list[Figure]:
    import torch

    from nlrl.backbones import load
    from nlrl.backbones.engine import Engine
    from nlrl.benchmarks.backbones import fresh_model, pretraining_architectures

    tokenizer = load("transformer-base")[1]
    found = spread(asks(run, style), count)
    fields = pretraining_architectures()[name]
    if "num_memory_tokens" in fields or "num_attention_heads" in fields:
        fields |= {"max_position_embeddings": CONTEXT}
    model = fresh_model(fields, device).to(torch.float32 if device == "cpu" else torch.bfloat16).eval()
    shared, apart = requests_of(found, tokenizer, True), requests_of(found, tokenizer, False)
    with Engine(model, tokenizer) as engine:
        rates, hits = _rounds(engine, shared, apart, rounds, WARM_UP if device == "cpu" else count)
    lengths, outputs = [len(r.tokens) for r in shared], [r.sampling.max_tokens for r in shared]
    what = (
        f"{name}, {len(shared)} requests, prompts of {min(lengths)} to {max(lengths)} tokens (mean "
        f"{sum(lengths) / len(lengths):.0f}), answers of {min(outputs)} to {max(outputs)}"
    )
    times = {other: ratio(rates["served"], rates[other]) for other in ("offline", "no reuse")}
    return [
        Figure("game", what, "served", median(rates["served"]), "tokens/s", note=f"prefix hit rate {hits:.1%}"),
        Figure("game", what, "offline", median(rates["offline"]), "tokens/s", times["offline"], "at least 0.9x",
               times["offline"] >= 0.9),
        Figure("game", what, "served, no reuse", median(rates["no reuse"]), "tokens/s", times["no reuse"],
               "at least 3x", times["no reuse"] >= 3),
    ]  # fmt: skip


def _rounds(engine, shared, apart, rounds: int, warm_up: int) -> tuple[dict[str, list[float]], float]:
    """Tokens a second of each way in every round, and the hit rate of the last served one."""
    ways = {"served": (serve, shared), "offline": (offline, shared), "no reuse": (serve, apart)}
    rates: dict[str, list[float]] = {way: [] for way in ways}
    hits = 0.0
    for number in range(rounds + 1):
        for way, (play, requests) in ways.items():
            engine.load_weights(engine.model.state_dict(), f"{number} {way}")
            before = engine.metrics()["prefix_hit_tokens_total"]
            start = time.perf_counter()
            tokens = play(engine, requests if number else requests[:warm_up])
            rates[way] += [tokens / (time.perf_counter() - start)] if number else []
            if way == "served":
                hits = engine.metrics()["prefix_hit_tokens_total"] - before
    return rates, hits / sum(len(request.tokens) for request in shared)


def offline(engine, requests) -> int:
    """Tokens of all answers, asked for in one call."""
    return sum(len(answer.tokens) for answer in engine.generate(requests))


def serve(engine, requests) -> int:
    """Tokens of all answers, asked for by several clients batch after batch."""
    size = max(16, len(requests) // (4 * CLIENTS))
    batches = [requests[i : i + size] for i in range(0, len(requests), size)]

    def client(number: int) -> int:
        tokens = 0
        for batch in batches[number::CLIENTS]:
            tickets = [engine.submit(request, client=f"{number}") for request in batch]
            tokens += sum(len(ticket.result().tokens) for ticket in tickets)
        return tokens

    with ThreadPoolExecutor(CLIENTS) as pool:
        return sum(pool.map(client, range(CLIENTS)))
