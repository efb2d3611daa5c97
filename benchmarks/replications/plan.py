"""Which runs a claim still needs, given those there are: the whole protocol as one function of the results.

So nothing but results has to survive a kill, and a resumed call goes on where they end.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from nlrl.benchmarks.replications.experiment import Arm, Claim, Result, Run


def missing(claim: Claim, results: Iterable[Result]) -> list[Run]:
    """Runs that can be made now, most urgent first; empty once the protocol is complete. What follows from a search
    that is not over is not among them."""
    results = list(results)
    done = {result.run for result in results}
    wanted = [
        run
        for context in claim.contexts
        for arm in claim.arms
        if arm.teacher is None or best(claim, results, arm.teacher, context)
        for run in wanted_runs(claim, results, arm, context)
    ]
    # Whole arms first: a call that is cut off leaves whole comparisons rather than many halves.
    return sorted((run for run in wanted if run not in done), key=lambda run: run.seed == claim.seeds[0])


def wanted_runs(claim: Claim, results: Sequence[Result], arm: Arm, context: int) -> list[Run]:
    """Of one arm at one context, as far as the results decide it: the search, then the other seeds at its best."""
    losses = searched(claim, results, arm.name, context)
    rates = grid(arm.lrs, losses, claim.extensions)
    runs = [Run(arm.name, context, claim.seeds[0], lr) for lr in rates]
    if all(lr in losses for lr in rates):
        chosen = min(rates, key=losses.__getitem__)
        runs += [Run(arm.name, context, seed, chosen) for seed in claim.seeds[1:]]
    return runs


def grid(lrs: Sequence[float], losses: Mapping[float, float], extensions: int) -> list[float]:
    """The learning rates to search, ascending: `lrs`, and beyond an edge that was best another one, at most
    `extensions` times. Args: losses: validation loss by learning rate, of those already run."""
    rates = sorted(lrs)
    for _ in range(extensions):
        if any(lr not in losses for lr in rates):
            break
        chosen = min(rates, key=losses.__getitem__)
        if chosen == rates[0]:
            rates.insert(0, chosen / 2)
        elif chosen == rates[-1]:
            rates.append(chosen * 2)
        else:
            break
    return rates


def searched(claim: Claim, results: Iterable[Result], arm: str, context: int) -> dict[float, float]:
    """Final validation loss by learning rate, of the seed that the search uses."""
    wanted = (arm, context, claim.seeds[0])
    return {r.run.lr: r.loss for r in results if (r.run.arm, r.run.context, r.run.seed) == wanted}


def best(claim: Claim, results: Iterable[Result], arm: str, context: int) -> Result | None:
    """The run that won the search; None while it goes on."""
    results = list(results)
    losses = searched(claim, results, arm, context)
    rates = grid(claim.arm(arm).lrs, losses, claim.extensions)
    if any(lr not in losses for lr in rates):
        return None
    chosen = Run(arm, context, claim.seeds[0], min(rates, key=losses.__getitem__))
    return next(result for result in results if result.run == chosen)


def at_edge(claim: Claim, results: Iterable[Result], arm: str, context: int) -> bool:
    """Whether the best learning rate is at the edge of all that were tried, extensions included."""
    losses = searched(claim, results, arm, context)
    rates = grid(claim.arm(arm).lrs, losses, claim.extensions)
    chosen = min(rates, key=lambda lr: losses.get(lr, float("inf")))
    return chosen in (rates[0], rates[-1])
