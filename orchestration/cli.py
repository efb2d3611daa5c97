"""The command line. Commands import what they need when they run, so that `nlrl --help` is quick."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import tyro
from tyro.extras import SubcommandApp

from nlrl.errors import NLRLError
from nlrl.orchestration.bench import bench_command
from nlrl.orchestration.printable import printable

app = SubcommandApp()
app.command(name="bench")(bench_command)
Where = tyro.conf.Positional
FEW_SPINS = ("GOMP_SPINCOUNT", "2000")
"""How long torch's OpenMP threads spin at each barrier before they sleep. By its own choice so long that two processes
with a thread a core each stand still; what this costs and gains: `nlrl bench threads`."""
WIDTH = 160
"""Columns of a table that is written to a pipe or a file."""


@app.command(name="report")
def report_command(run: Where[str], out: Path | None = None) -> None:
    """Prints a run's tables; with --out, writes them and its figures as a page to share.

    Args:
        run: the run's folder, or its URL.
        out: a folder for index.html, which needs nothing else, and for each figure as SVG and PNG.
    """
    from nlrl.orchestration.fetching import but_weights, local
    from nlrl.orchestration.report import report

    folder = local(run, but_weights)
    if not (folder / "config.toml").exists():
        raise NLRLError(f"{run} is not a run's folder (no config.toml in it)")
    show(report(folder))
    if out is not None:
        from nlrl.ui.report import write_report

        print(write_report(folder, out))


@app.command(name="check-texts")
def check_texts_command(
    run: Where[Path],
    iteration: int | None = None,
    parts: tuple[Literal["verdicts", "faithfulness", "symmetry", "counterfactual", "sufficiency"], ...] = (),
    states: int = 60,
    prompts: int = 200,
) -> None:
    """Checks what a run's models wrote in one iteration: against exact values, the rules, and themselves.

    Writes RUN/texts/iteration_004.md (a page), .json (every figure) and .svg (the reliability diagram); see
    docs/texts.md.

    Args:
        run: the run's folder.
        iteration: the last one, if not given; 0 is the untrained model.
        parts: only these checks. Symmetry and counterfactual ask the models, the others read records.
        states: positions whose images under the game's symmetries are asked about.
        prompts: prompts of I in which evaluations are exchanged.
    """
    from nlrl.orchestration.check_texts import check_texts

    found = check_texts(run, iteration, parts, states, prompts)
    print(f"{printable(found.page.read_text(encoding='utf-8'))}\n({found.page})")


@app.command(name="eval")
def eval_command(
    agent: Where[str],
    game: str = "tictactoe",
    opponents: tuple[str, ...] = ("random", "first-move", "minimax"),
    games: int = 1000,
    temperature: float = 0.0,
    seed: int = 0,
    base_url: str = "",
    out: Path | None = None,
) -> None:
    """Measures an agent: sampled games with intervals and, for small games played greedily, its exact results.

    Args:
        agent: a run's folder or URL, a model folder or bundled name, or (with --base-url) a model's name at an
            endpoint.
        game: the game, as in `tictactoe`.
        opponents: whom it plays.
        games: sampled games against each opponent, in seat-swapped pairs.
        temperature: 0 is greedy.
        seed: of the games.
        base_url: an OpenAI-compatible endpoint.
        out: write the figures here as JSON, too.
    """
    from nlrl.orchestration.evaluate_agent import evaluate_agent

    show(evaluate_agent(agent, game, opponents, games, temperature, seed, base_url, out))


@app.command(name="league")
def league_command(
    out: Where[str],
    members: tuple[str, ...] = (),
    game: str = "tictactoe",
    pairs: int = 50,
    seed: int = 0,
    samples: int = 8,
    anchor: str | None = None,
) -> None:
    """Lets players and checkpoints meet each other, and rates them; called again with more members it goes on.

    Args:
        out: the league's folder, or its URL.
        members: named as opponents are, e.g. random "mcts(100,1)" "agent(runs/a)" "agent(runs/a,iteration=2)".
        game: the game, as in `tictactoe`.
        pairs: seat-swapped pairs of games between each two members.
        seed: of the games.
        samples: answers kept for a state of an agent that samples.
        anchor: the member whose rating is 0; the average of all, if not given.
    """
    from nlrl.orchestration.config import validated
    from nlrl.orchestration.league import LeagueConfig, run_league, table

    given = {"game": game, "members": members, "pairs": pairs, "seed": seed, "samples": samples, "anchor": anchor}
    config = validated(LeagueConfig, given, "league")
    show(table(run_league(config, out), f"{game}, {pairs} pairs of games between each two"))


@app.command(name="pretrain")
def pretrain_command(
    config: Where[Path], out: Path | None = None, seed: int | None = None, max_seconds: float | None = None
) -> None:
    """Makes a board-literate base: corpus, tokenizer, weights, report.

    Args:
        config: a file of configs/pretrain.
        out: where to save it, instead of the config's folder.
        seed: instead of the config's.
        max_seconds: instead of the config's.
    """
    from rich import print_json

    from nlrl.orchestration.pretrain import load_pretrain_config, run_pretraining

    given = {"out": out, "seed": seed, "max_seconds": max_seconds}
    report = run_pretraining(load_pretrain_config(config, **{k: v for k, v in given.items() if v is not None}))
    if report:
        print_json(data=report, default=str)


@app.command(name="corpus")
def corpus_command(config: Where[Path], out: Path, count: int = 1_000_000, workers: int = 4) -> None:
    """Writes pretraining examples to a file, so that several models can be pretrained on the very same ones.

    Args:
        config: a file of configs/pretrain; its game, facts, vocabulary and seed are used.
        out: the file; the tokenizer goes beside it.
        count: examples.
        workers: processes that generate.
    """
    from nlrl.orchestration.pretrain import load_pretrain_config, write_corpus

    print(f"{out}: {write_corpus(load_pretrain_config(config), out, count, workers):,} examples")


@app.command(name="convert")
def convert_command(
    source: Where[str], out: Where[Path], dtype: Literal["float32", "float16", "bfloat16", "int8", "bits"] = "int8"
) -> None:
    """Writes a model again with its weights stored in another type.

    Args:
        source: a bundled name or a model folder, foreign layouts included.
        out: the new folder.
        dtype: int8 keeps a scale a row; bits is for Bi-Mamba's binary matrices.
    """
    from nlrl.backbones.loading import convert

    print(convert(source, out, dtype))


@app.command(name="study")
def study_command(
    model: Where[str] = "transformer-base", prompts: int = 1000, seed: int = 1, facts: bool = True
) -> None:
    """Scores a bundled or pretrained base, role by role, on prompts about positions that pretraining never saw.

    Args:
        model: a bundled name or a folder.
        prompts: of each role.
        seed: of the prompts.
        facts: False for a base that was pretrained without the sentence about winning cells.
    """
    from rich import print as show

    from nlrl.orchestration.base_study import study_table

    show(study_table(model, prompts, seed, facts))


@app.command(name="solve")
def solve_command(game: Where[str], state: Where[str] = "", save: bool = False) -> None:
    """Prints the exact value of a position and of every legal move, the best moves and how far the end is.

    Args:
        game: the game, as in `tictactoe`.
        state: moves from the start, e.g. "1 5 9" or "move left, move up"; or a board, lines separated by `/`; empty for
            the start.
        save: keep the solved positions (Breakthrough) for the next time.
    """
    from nlrl.orchestration.solve import solution

    show(solution(game, state, save))


@app.command(name="check")
def check_command(game: Where[str], games: int = 30, seed: int = 0) -> None:
    """Holds a game to every promise of the platform: rules, text, seeds, independence, pictures.

    Args:
        game: the game, as in `breakthrough(rows=5,columns=5)`; one of your own as `my_package.my_module:MyGame`.
        games: random games played.
        seed: of the games.
    """
    from nlrl.orchestration.check_game import check_table

    table, broken = check_table(game, games, seed)
    show(table)
    if broken:
        raise NLRLError(f"{game} breaks {broken} promise(s)")


@app.command(name="import-nlrl")
def import_nlrl_command(
    data: Where[Path],
    out: Where[Path],
    game: str = "breakthrough(rows=5,columns=5)",
    prompts: Literal["ours", "theirs"] = "ours",
    style: Literal["plain", "instruct"] = "instruct",
) -> None:
    """Reads the Breakthrough data that the paper's authors published: games, look-aheads, labels and evaluations.

    Every position and move is checked by the rules; what does not fit is counted by its reason. See
    docs/language_models.md.

    Args:
        data: a file, or a folder such as train_45k.
        out: the folder for the records.
        game: the board.
        prompts: of the examples to fine-tune on: our own for the position, or those in the data.
        style: of our own.
    """
    from nlrl.orchestration.import_nlrl import import_nlrl, table

    show(table(import_nlrl(data, out, game, prompts, style)))


@app.command(name="play")
def play_command(game: Where[str] = "tictactoe", agent: str = "transformer-base", seat: int = 0) -> None:
    """Plays against an agent on the terminal, with its arguments.

    Args:
        game: the game.
        agent: a run's folder, a model folder or a bundled name.
        seat: 0 moves first.
    """
    from nlrl.orchestration.play_terminal import play_terminal

    play_terminal(game, agent, seat)


@app.command(name="view")
def view_command(runs: Where[str] = "runs", port: int = 8501, sample: bool = False, networks: bool = False) -> None:
    """Opens the viewer in a browser.

    Args:
        runs: a folder of runs, or its URL, of which a copy is fetched.
        port: on this machine's loopback address.
        sample: copy the run that comes with the package to RUNS/sample first.
        networks: of a URL, fetch the networks, too, so that agents can be asked and played against.
    """
    from nlrl.orchestration.fetching import but_weights, local_runs
    from nlrl.orchestration.local_copy import everything
    from nlrl.ui.launch import view

    view(local_runs(runs, everything if networks else but_weights), port, sample)


@app.command(name="serve")
def serve_command(
    model: str,
    weights: tuple[str, ...] = (),
    host: str = "127.0.0.1",
    port: int = 8000,
    name: str = "",
    allow_anonymous: bool = False,
    device: str = "auto",
    dtype: Literal["auto", "float32", "bfloat16"] = "auto",
    max_rows: int | None = None,
    memory_gb: float | None = None,
    max_queue: int = 65_536,
    max_request_mb: float = 8.0,
) -> None:
    """Serves a model on an OpenAI-compatible endpoint, until it is stopped.

    Args:
        model: a bundled name or a model folder.
        weights: more weights of the same shape, each as NAME=FOLDER; clients choose by `model`.
        host: where to listen; other machines reach it only if this is not a loopback address.
        port: 0 takes a free one.
        name: what clients call the model; by default its bundled or folder name.
        allow_anonymous: answer other machines without a key. (A key that clients must send is taken from the
            environment variable NLRL_API_KEY.)
        device: cpu, cuda, cuda:1, ...; auto is the GPU where there is one.
        dtype: auto is bfloat16 on a GPU and float32 on a CPU.
        max_rows: answers written at once; by default 128 on a CPU, 1024 on a GPU.
        memory_gb: for the states of one weight set; by default 1 on a CPU, half of what is free on a GPU.
        max_queue: requests that may wait; more get status 429.
        max_request_mb: size of a request; a larger one gets status 413.
    """
    given = dict(locals())
    from nlrl.orchestration.serve import ServeSettings, serve

    serve(ServeSettings(**given))


@app.command(name="submit")
def submit_command(
    config: Where[Path],
    overrides: tyro.conf.Positional[tuple[str, ...]] = (),
    *,
    address: str,
    submission_id: str = "",
    working_dir: Path = Path("."),
    num_cpus: float = 0,
    wait: bool = True,
) -> None:
    """Submits a run to a Ray cluster, as `ray job submit` does, after checking what can be checked here.

    Args:
        config: a TOML file in the working directory.
        overrides: `--field value` for `nlrl run`, after `--`.
        address: where the cluster takes jobs, as in http://HEAD:8265.
        submission_id: of the job, used once; by default the run's name and a number. To resume, submit again.
        working_dir: what travels with the job, but for what .gitignore and .rayignore name.
        num_cpus: cores reserved for the driver, on any node; 0 starts it on the head.
        wait: follow the job's log until it ends.
    """
    from nlrl.orchestration.submit import submit

    if code := submit(config, overrides, address, submission_id, working_dir, num_cpus, wait):
        raise SystemExit(code)


@app.command(name="status")
def status_command(runs: Where[tuple[Path, ...]], json: bool = False) -> None:
    """Shows how runs are: whether they are being written and by whom, how far they are, what is left, what they need.

    Args:
        runs: folders of runs; nothing in them is changed.
        json: one JSON object a run, a line each.
    """
    import orjson

    from nlrl.orchestration.run_status import read_status
    from nlrl.orchestration.status_table import status_table

    if not runs:
        raise NLRLError("name the folder of a run: nlrl status runs/demo")
    found = [read_status(run) for run in runs]
    if not json:
        show(status_table(found))
    for one in found if json else ():
        print(orjson.dumps(one._asdict()).decode())


@app.command(name="verify")
def verify_command(run: Where[str]) -> None:
    """Proves a run whole: manifests, hashes, counts, records, keys, and that no stage lacks one it was made from.

    Prints what was checked and a line for each problem; the exit code is 1 if there is one. At a URL every byte is read
    once and none is kept.

    Args:
        run: the run's folder, or its URL.
    """
    from nlrl.orchestration.verify import verify_run

    checked = verify_run(run)
    if not checked.is_run:
        raise NLRLError(f"{run} is not a run's folder (no config.toml in it)")
    for problem in checked.problems:
        print(problem)
    print(checked)
    if checked.problems:
        print(f"{run}: {len(checked.problems)} problem(s)", file=sys.stderr)
        raise SystemExit(1)
    print(f"{run}: whole")


def run_command(arguments: Sequence[str]) -> None:
    """`nlrl run CONFIG [--field value ...]`: the file's values are the defaults of the command line's fields."""
    from nlrl.orchestration.config import RunConfig, load_config
    from nlrl.orchestration.logs import setup_logging
    from nlrl.orchestration.overrides import overridden

    if not arguments or arguments[0] in ("-h", "--help"):
        default, rest = RunConfig(), ["--help"]
        if len(arguments) > 1 and not arguments[1].startswith("-"):
            default = load_config(Path(arguments[1]))
    else:
        default, rest = load_config(Path(arguments[0])), list(arguments[1:])
    config = overridden(default, rest)
    keys = [model.api_key_env for model in (config.model, config.teacher) if model is not None]
    setup_logging(config.watch.log_level, config.watch.log_json, keys)
    from nlrl.orchestration.loop import run
    from nlrl.orchestration.report import report

    folder = run(config)
    show(report(folder.path))


def show(result: Any) -> None:
    """Prints what a command found out: on stdout, unlike progress and logs; in a pipe, wide enough for tables."""
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else WIDTH).print(result)


NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
"""Of a disk, whoever of all the libraries that write meets it."""


def main() -> None:
    """Entry point of `nlrl`."""
    os.environ.setdefault(*FEW_SPINS)  # before anything imports torch, for this process and those that it starts
    sys.exit(run_cli(sys.argv[1:]))


def run_cli(arguments: Sequence[str]) -> int:
    """Runs one command; returns the exit code: 0, 2 for a mistake that the user can put right, 130 for Ctrl-C."""
    try:
        if arguments and arguments[0] == "run":
            run_command(arguments[1:])
        else:
            _others(arguments)
    except NLRLError as error:
        print(f"nlrl: {printable(str(error))}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        print(f"nlrl: {printable(str(error))}; make room and run the same command again", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, EOFError):
        print("nlrl: stopped; run the same command again to go on", file=sys.stderr)
        return 130
    return 0


def _others(arguments: Sequence[str]) -> None:
    from nlrl.orchestration.logs import setup_logging

    setup_logging()
    if not arguments:
        arguments = ["--help"]
    if arguments[0] in ("-h", "--help"):
        print("`nlrl run CONFIG [--field value ...]` runs language policy iteration; the other commands:\n")
    run: Callable[..., Any] = app.cli
    run(prog="nlrl", args=list(arguments))


if __name__ == "__main__":
    main()
