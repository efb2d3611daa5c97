"""The Markdown page of `nlrl check-texts`: every figure with its interval, and what it would be for texts that say
nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

Figures = Mapping[str, Any]

VERDICTS = {
    "coverage": "readable",
    "sign_accuracy": "right sign (win, even, loss)",
    "side_accuracy": "right side of 0",
    "order_accuracy": "moves of a position in the right order",
    "rank_correlation": "rank correlation",
    "mae": "mean error",
    "brier": "Brier score",
    "ece": "calibration error (ECE)",
    "bias": "bias",
    "positivity_bias": "positivity bias",
}
FAITHFUL = {
    "true_claims": "claims that the rules confirm",
    "illegal_suggestions": "texts that suggest an illegal move",
    "leaks": "texts that cite absent evidence",
    "words_agree": "words agree with the number",
    "words_silent": "no judging words",
    "numbers_agree": "number in the prose is the one at the end",
}
AGAINST = {"policy": "the policy that the critic judges", "optimal": "best play on both sides"}
SWAPS = {
    "first_best": "chose the best-evaluated candidate at first",
    "follows": "evaluations exchanged: follows them",
    "stays": "evaluations exchanged: stays",
    "elsewhere": "evaluations exchanged: chooses a third",
    "unread": "evaluations exchanged: unreadable",
    "unmoved_by_order": "only the order changed: chooses the same",
}
READERS = {
    "narrative": "the narrative without its numbers",
    "facts": "the same without its judging words",
    "chat_model": "the narrative, read by the run's teacher",
}


def page(values: Figures, picture: str | None = None) -> str:
    """The page.

    Args:
        values: what `check_texts` found.
        picture: file name of the reliability diagram.
    """
    lines = [
        f"# Texts of iteration {values['iteration']}",
        "",
        f"{values['texts']} evaluations by the critic, {values['game']}, run `{values['run']}`.",
        "In brackets: 95% intervals.",
        "",
    ]
    for name, section in (
        ("verdicts", _verdicts),
        ("faithfulness", _faithfulness),
        ("symmetry", _symmetry),
        ("counterfactual", _counterfactual),
        ("sufficiency", _sufficiency),
    ):
        if values.get(name):
            lines += [*section(values[name]), ""]
        if name == "verdicts" and picture:
            lines += [f"![reliability diagram]({picture})", ""]
    return "\n".join(lines)


def _verdicts(found: Figures) -> Iterator[str]:
    yield "## Verdicts against exact values"
    for name, words in AGAINST.items():
        if f"against_{name}" in found:
            rows = found[f"against_{name}"]
            baselines = rows["baselines"]
            yield from ("", f"Against {words}:", "")
            yield from _table(
                ["", "texts", *baselines],
                (
                    [v, shown(rows["text"][k]), *(_number(row[k]) for row in baselines.values())]
                    for k, v in VERDICTS.items()
                ),
            )
    if found["choices"]:
        yield from ("", "What the choice of I among the evaluated candidates costs:", "")
        yield from _table(
            ["by exact values of", "regret", "of a random choice", "chooses a best move", "a random choice does"],
            (
                [AGAINST[name], *(shown(rows[k]) for k in ("regret", "random_regret", "best", "random_best"))]
                for name, rows in found["choices"].items()
            ),
        )


def _faithfulness(found: Figures) -> Iterator[str]:
    yield from ("## Faithfulness", "")
    yield from _table(["", *found], (_row(words, key, found) for key, words in FAITHFUL.items()))
    yield from ("", "Claims by kind:", "")
    kinds = sorted({kind for rows in found.values() for kind in rows["claims_by_kind"]})
    yield from _table(
        ["", *found], ([kind, *(_kind(rows["claims_by_kind"].get(kind)) for rows in found.values())] for kind in kinds)
    )
    for name, rows in found.items():
        for example in rows["examples"]:
            yield from _example(name, example)


def _example(author: str, example: Figures) -> Iterator[str]:
    about = f", about {example['move']}" if example["move"] else ""
    yield from (
        "",
        f"{author}{about}: {'; '.join(example['wrong'])}",
        "",
        "````text",
        example["position"],
        "",
        example["text"],
    )
    yield "````"  # a text may hold a fence of three


def _row(words: str, key: str, found: Figures) -> list[str]:
    return [words, *(shown(rows.get(key), percent=True) for rows in found.values())]


def _kind(row: Figures | None) -> str:
    return f"{row['true']:.1%} of {row['claims']}" if row else ""


def _symmetry(found: Figures) -> Iterator[str]:
    yield from (f"## Symmetry: {found['positions']} positions and their images", "")
    if found["verdicts"]:
        spread = shown(found["spread"])
        yield from (f"Verdicts of one move over all its images have a standard deviation of {spread}, on average.", "")
    moves, verdicts = found["moves"], found["verdicts"]
    yield from _table(
        [
            "image",
            "readable",
            "same sign",
            "opposite",
            "difference",
            "of unrelated moves",
            "plays the image of its move",
            "by chance",
        ],
        (
            [
                name,
                _percent(verdicts.get(name, {}).get("coverage")),
                *(_symmetric(verdicts.get(name, {}), key) for key in ("same_sign", "opposite", "difference")),
                _number(verdicts.get(name, {}).get("unrelated")),
                shown(moves[name]["equivariant"], percent=True) if name in moves else "",
                _percent(moves.get(name, {}).get("chance")),
            ]
            for name in verdicts or moves
        ),
    )


def _symmetric(row: Figures, key: str) -> str:
    return shown(row.get(key), percent=key != "difference")


def _counterfactual(found: Figures) -> Iterator[str]:
    yield from (f"## Counterfactual: {found['first_best']['n']} prompts of I", "")
    yield from _table(["", "share"], ([words, shown(found[key], percent=True)] for key, words in SWAPS.items()))


def _sufficiency(found: Figures) -> Iterator[str]:
    yield from ("## Sufficiency: a fresh reader without board and numbers", "")
    yield from _table(
        ["what it reads", "R2", "shuffled control", "right sign", "shuffled control"],
        ([READERS[name], *(shown(rows.get(k)) for k in _READ)] for name, rows in found.items()),
    )


_READ = ("r_squared", "shuffled_r_squared", "sign_accuracy", "shuffled_sign_accuracy")


def shown(figure: Figures | None, percent: bool = False) -> str:
    """A figure as people read it: `0.942 [0.913, 0.965]`."""
    if figure is None or figure["value"] is None:
        return ""
    numbers = [figure[end] for end in ("value", "low", "high")]
    form = "{:.1%}" if percent else "{:.3f}"
    value, low, high = ("?" if number is None else form.format(number) for number in numbers)
    return f"{value} [{low}, {high}]"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield _line(headers)
    yield _line(["---"] * len(headers))
    for row in rows:
        yield _line(row)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
