"""`nlrl check-texts RUN`: everything that can be checked about an iteration's texts, with intervals.

1. The run's folder is read and not changed, but for `RUN/texts/`: `iteration_004.json` has every figure, `.md` is the
   page for people, `.svg` the reliability diagram.
2. Models are opened as the run opens them, in this process, with the weights that the iteration committed.
3. Intervals are 95%: of shares of texts Wilson's, of everything that compares numbers a bootstrap over positions,
   because the moves of one position are not independent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nlrl.errors import NLRLError
from nlrl.orchestration import text_figures as figures
from nlrl.orchestration.atomic import write_atomic, write_json_atomic
from nlrl.orchestration.config import load_config
from nlrl.orchestration.models import is_run
from nlrl.orchestration.reliability_svg import reliability_svg
from nlrl.orchestration.run_folder import CONFIG_FILE, RunFolder
from nlrl.orchestration.session import ACTOR, CRITIC, Session, open_session
from nlrl.orchestration.stages import improvement
from nlrl.orchestration.text_faithful import faithfulness
from nlrl.orchestration.text_page import page
from nlrl.orchestration.texts import asked_texts, exact_values, loop_texts, value_texts

EVALUATION = "evaluation"
FOLDER = "texts"
PARTS: dict[str, Callable[[figures.Evidence], dict[str, Any]]] = {
    "verdicts": figures.verdicts,
    "faithfulness": faithfulness,
    "symmetry": figures.symmetry,
    "counterfactual": figures.counterfactual,
    "sufficiency": figures.sufficiency,
}
"""What can be asked for, in the order of the page."""


@dataclass(frozen=True)
class Checked:
    """The figures and where they were written."""

    figures: dict[str, Any]
    page: Path


def check_texts(
    run: str | Path, iteration: int | None = None, parts: Sequence[str] = (), states: int = 60, prompts: int = 200
) -> Checked:
    """Checks the texts of one iteration of a run and writes what was found into the run's folder.

    Args:
        iteration: None is the last one; 0 is the untrained model.
        parts: names of `PARTS`; empty for all.
        states: positions whose images are asked about.
        prompts: of I that are changed.

    Raises:
        NLRLError: not a run's folder, no such iteration or part, or a model cannot be opened.
    """
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        raise NLRLError(f"there is no check '{unknown[0]}'; known: {', '.join(PARTS)}")
    with _opened(Path(run)) as session:
        chosen = _iteration(session, iteration)
        _restore(session, chosen)
        evidence = _evidence(session, chosen, states, prompts)
        found = {name: PARTS[name](evidence) for name in PARTS if not parts or name in parts}
        values = {"run": str(run), "iteration": chosen, "game": session.game.spec, "texts": len(evidence.said)} | found
    return Checked(values, _write(Path(run) / FOLDER, f"iteration_{chosen:03d}", values))


@contextmanager
def _opened(path: Path) -> Iterator[Session]:
    if not is_run(path):
        raise NLRLError(f"{path} is not a run's folder (no {CONFIG_FILE} in it)")
    config = load_config(path / CONFIG_FILE)
    inline = config.cluster.model_copy(update={"kind": "inline", "address": None})
    session = open_session(config.model_copy(update={"cluster": inline, "out": path}), RunFolder(path))
    try:
        yield session
    finally:
        session.close()


def _iteration(session: Session, wanted: int | None) -> int:
    stages = list(session.folder.stages())
    measured = [s.iteration for s in stages if s.name == EVALUATION and s.is_committed()]
    there = sorted({*measured, *(s.iteration for s in stages if s.name == improvement.NAME and s.is_committed())})
    if wanted is None:
        return max(there, default=0)
    if wanted and wanted not in there:
        known = f"there are {_numbered(there)}" if there else "there is none yet"
        raise NLRLError(f"{session.folder.path}: no texts of iteration {wanted}; {known}")
    return wanted


def _numbered(iterations: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(iterations)))


def _restore(session: Session, iteration: int) -> None:
    """Reads back what the iteration trained; a method that trains nothing leaves the base as it is. Opponents from the
    past are those that the iteration had."""
    session.iteration = iteration
    for network in (CRITIC, ACTOR):
        stage = session.folder.stage(iteration, network)
        if session.trainer is not None and stage.is_committed():
            session.restore(network, iteration, stage.dir)  # type: ignore[arg-type]


def _evidence(session: Session, iteration: int, states: int, prompts: int) -> figures.Evidence:
    """What was said; of an iteration without a critic the actor's arguments alone."""
    choices = session.folder.stage(iteration, improvement.NAME).is_committed()
    speaks = choices or iteration == 0 or any(value_texts(session, iteration))
    asked = asked_texts(session, iteration) if speaks else []
    exact_pi, exact_star = exact_values(session, iteration, [one.pair for one in asked]) if asked else ({}, {})
    said = loop_texts(session, iteration) if choices else asked
    return figures.Evidence(session, iteration, asked, said, exact_pi, exact_star, states, prompts)


def _write(folder: Path, name: str, values: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    bars = values.get("verdicts", {}).get("reliability", [])
    picture = f"{name}.svg" if bars else None
    if picture:
        title = f"Iteration {values['iteration']}: verdicts and exact values"
        write_atomic(folder / picture, reliability_svg(bars, title).encode())
    write_json_atomic(folder / f"{name}.json", values)
    write_atomic(folder / f"{name}.md", page(values, picture).encode())
    return folder / f"{name}.md"
