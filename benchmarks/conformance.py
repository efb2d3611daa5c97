"""Which promises do text environments keep? Ours and, where installed, TextArena's and gem's: the same questions.

    nlrl bench conformance -- --out results.json
    nlrl bench conformance -- --read results.json        prints the table of answers found before

(or `python -m nlrl.benchmarks.conformance`, which also works where only `nlrl.envs` can be imported.)

Peers: `pip install textarena gem-llm open_spiel` (OpenSpiel is the second opinion on Breakthrough's rules). A cell is
`ok`, `FAILS` or `-` (the question does not apply, or the wrapper cannot ask it); what failed is listed below the table.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nlrl.benchmarks.conformance_ours import BreakthroughEnv, GymnasiumEnv
from nlrl.benchmarks.conformance_peers import PEERS
from nlrl.envs import make_from_spec
from nlrl.envs.testing import GameTextEnv, Report, TextEnv, check_env

OURS: dict[str, Callable[..., TextEnv]] = {
    "tictactoe": GameTextEnv,
    "breakthrough(rows=5,columns=5)": GameTextEnv,
    "breakthrough(rows=8,columns=8)": BreakthroughEnv,
    "maze(layout=double_t)": GameTextEnv,
    "frozen_lake(slippery=True)": GameTextEnv,
}
THROUGH_GYMNASIUM = ("nlrl/TicTacToe-v0", "nlrl/Breakthrough-v0", "nlrl/Maze-v0", "nlrl/FrozenLake-v0")
DISTRIBUTIONS = ("textarena", "gem-llm", "open_spiel", "gymnasium", "numpy")
MORE_GAMES = 300
"""Random games in which somebody must always be able to move."""


def environments() -> Iterator[tuple[str, Callable[[], TextEnv]]]:
    """Name and maker of everything that can be asked here."""
    for spec, wrapper in OURS.items():
        yield f"nlrl {spec}", partial(wrapper, make_from_spec(spec))
    for env_id in THROUGH_GYMNASIUM if find_spec("gymnasium") else ():
        yield f"gymnasium {env_id}", partial(GymnasiumEnv, env_id)
    for package, wrappers in PEERS.items():
        if find_spec(package) is None:
            print(f"{package}: not installed, left out")
            continue
        for env_id, wrapper in wrappers.items():
            yield f"{package} {env_id}", partial(wrapper, env_id)


def measure(only: str) -> dict[str, Any]:
    """Asks every environment whose name holds `only`."""
    reports = [check_env(make, name, more_games=MORE_GAMES) for name, make in environments() if only in name]
    return {
        "versions": versions(),
        "command": "python -m nlrl.benchmarks.conformance",
        "results": [*map(as_data, reports)],
    }


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in DISTRIBUTIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def as_data(report: Report) -> dict[str, Any]:
    return {"environment": report.name, "checks": [check._asdict() for check in report]}


# -- tables ------------------------------------------------------------------------------------------------------------
_CELLS = {True: "ok", False: "FAILS", None: "-"}


def table(found: dict[str, Any]) -> str:
    """One row an environment, one column a promise (numbered, named below), then every failure in words."""
    results = found["results"]
    promises = list(dict.fromkeys(check["promise"] for result in results for check in result["checks"]))
    width = max(len(result["environment"]) for result in results)
    lines = [", ".join(f"{name} {number}" for name, number in found["versions"].items()), ""]
    lines.append(" " * width + "".join(f"{number:>7}" for number in range(1, len(promises) + 1)))
    for result in results:
        cells = {check["promise"]: _CELLS[check["ok"]] for check in result["checks"]}
        lines.append(f"{result['environment']:{width}}" + "".join(f"{cells[promise]:>7}" for promise in promises))
    lines += ["", *(f"{number:3} {promise}" for number, promise in enumerate(promises, 1)), ""]
    return "\n".join([*lines, *failures(results)])


def failures(results: list[dict[str, Any]]) -> Iterator[str]:
    for result in results:
        for check in result["checks"]:
            if check["ok"] is False:
                yield f"{result['environment']}: {check['promise']}: {check['message']}"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--read", type=Path, help="print this file instead of asking")
    parser.add_argument("--out", type=Path, help="write the answers here")
    parser.add_argument("--only", default="", help="ask environments whose name holds this")
    options = parser.parse_args(argv)
    found = json.loads(options.read.read_text()) if options.read else measure(options.only)
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")
    print(table(found))


if __name__ == "__main__":
    main()
