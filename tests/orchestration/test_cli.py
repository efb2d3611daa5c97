"""The command line: help, overrides, what goes to stdout, exit codes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from nlrl.orchestration.cli import main, run_cli
from nlrl.orchestration.config import load_config
from nlrl.orchestration.play_terminal import play_terminal

COMMANDS = (
    "report", "eval", "pretrain", "corpus", "convert", "solve", "check", "bench", "play", "view", "serve", "verify",
    "check-texts",
)  # fmt: skip


def nlrl(*arguments, **options):
    """The command as users start it: another process, without a terminal."""
    script = Path(sys.executable).with_name("nlrl")
    return subprocess.run([str(script), *map(str, arguments)], capture_output=True, text=True, timeout=120, **options)


# -- help --------------------------------------------------------------------------------------------------------------
def test_help_lists_every_command_with_what_it_does():
    done = nlrl("--help")
    assert done.returncode == 0
    assert "nlrl run CONFIG" in done.stdout
    for command in COMMANDS:
        assert f"{command} " in done.stdout
    assert "exact value of a position" in done.stdout


def test_help_costs_neither_torch_nor_ray():
    code = "import sys; from nlrl.orchestration.cli import run_cli\ntry: run_cli(['--help'])\nexcept SystemExit: pass\n"
    code += "print('heavy:', sorted({'torch', 'ray', 'transformers', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.rstrip().endswith("heavy: []")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_all_its_arguments(command, capsys):
    with pytest.raises(SystemExit) as done:
        run_cli([command, "--help"])
    assert done.value.code == 0
    text = capsys.readouterr().out
    assert f"usage: nlrl {command}" in text
    assert "(required)" in text or "(default: " in text


def test_help_of_run_shows_fields_their_meaning_and_their_defaults(capsys):
    with pytest.raises(SystemExit) as done:
        run_cli(["run", "--help"])
    assert done.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    fields = ("--rollout.games INT", "half of them in each seat", "(default: 512)", "--targets.kind {mc,td,lambda}")
    for expected in fields:
        assert expected in text


def test_help_of_run_shows_the_values_of_a_config(config_file, capsys):
    with pytest.raises(SystemExit):
        run_cli(["run", "--help", str(config_file(seed=4321))])
    assert "(default: 4321)" in capsys.readouterr().out


def test_no_command_is_help(capsys):
    with pytest.raises(SystemExit) as done:
        run_cli([])
    assert done.value.code == 0
    assert "solve" in capsys.readouterr().out


def test_an_unknown_command_is_an_error_with_those_there_are():
    done = nlrl("sovle")
    assert done.returncode == 2
    assert "solve" in done.stderr
    assert not done.stdout


# -- run ---------------------------------------------------------------------------------------------------------------
def test_run_takes_the_file_and_lets_the_command_line_override_it(config_file, tmp_path, capsys):
    path = config_file(iterations=1)
    other = tmp_path / "elsewhere"
    overrides = ["--seed", "9", "--rollout.games", "8", "--evaluation.games", "2", "--out", str(other)]
    assert run_cli(["run", str(path), *overrides, "--rollout.opponents", "random", "first-move"]) == 0
    config = load_config(other / "config.toml")
    assert (config.seed, config.rollout.games, config.rollout.opponents) == (9, 8, ("random", "first-move"))
    assert (config.iterations, config.evaluation.games, config.rollout.samples_per_state) == (1, 2, 2)
    out = capsys.readouterr().out
    assert "Greedy play against random" in out
    assert str(other / "evaluations.md") in out
    assert not (tmp_path / "run").exists()


def test_tables_in_an_option_reach_the_run(config_file):
    path = config_file(model={"options": {"agent": ""}})
    assert load_config(path).model.options == {"agent": ""}
    assert run_cli(["run", str(path), "--iterations", "1", "--rollout.games", "4", "--evaluation.games", "0"]) == 0


def test_run_without_a_config_says_what_it_needs():
    done = nlrl("run")
    assert "usage: nlrl run CONFIG" in done.stdout + done.stderr


def test_results_go_to_stdout_and_progress_to_stderr(config_file):
    done = nlrl("run", config_file(iterations=1, rollout={"games": 4}, evaluation={"games": 0}))
    assert done.returncode == 0
    assert "iteration 1: games" in done.stderr
    assert "iteration 1: games" not in done.stdout
    assert "Exact results of the greedy actor" in done.stdout
    assert "Exact results" not in done.stderr


def test_ctrl_c_is_no_traceback(monkeypatch, capsys):
    monkeypatch.setattr("nlrl.orchestration.solve.solution", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
    assert run_cli(["solve", "tictactoe"]) == 130
    assert "run the same command again" in capsys.readouterr().err


# -- solve -------------------------------------------------------------------------------------------------------------
def test_solve_prints_the_value_of_a_position_and_the_regret_of_each_move():
    done = nlrl("solve", "tictactoe", "1 5 9")
    assert done.returncode == 0
    assert "X to move; value +0.00" in done.stdout
    rows = {row.split()[1]: row.split()[3:6:2] for row in done.stdout.splitlines() if row.startswith("│")}
    assert {move for move, (value, _) in rows.items() if value == "+0.00"} == {"2", "4", "6", "8"}
    assert rows["3"] == ["-1.00", "1.00"]


def test_solve_knows_the_start_and_the_end(capsys):
    assert run_cli(["solve", "tictactoe"]) == 0
    assert "O to move; value +0.00" in capsys.readouterr().out
    assert run_cli(["solve", "tictactoe", "1 4 2 5 3"]) == 0
    assert "The game is over; returns: (1.0, -1.0)" in capsys.readouterr().out


def test_solve_takes_moves_with_spaces_in_them_and_boards(capsys):
    assert run_cli(["solve", "maze(layout=umaze)", "move down, move up"]) == 0
    by_moves = capsys.readouterr().out
    assert run_cli(["solve", "maze(layout=umaze)", "#####/#@..#/#.#.#/#.#G#/#####"]) == 0
    assert capsys.readouterr().out == by_moves
    assert "Distance to the end under best play: 4 moves" in by_moves


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["tictactoe", "1 1"], "STATE: '1' is not a legal move there; legal: 2 3 4"),
        (["tictactoe", "1 4 2 5 3 6"], "'6' is not a legal move there; legal: none, the game is over"),
        (["chess"], "unknown game 'chess'; known: breakthrough, frozen_lake, maze, tictactoe"),
        (["tictactoe(size=4)"], "no parameter 'size'"),
        (
            ["maze(layout=umaze)", "move down, move sideways"],
            "'move sideways' is not a legal move there; legal: move left",
        ),
        (["frozen_lake", "right"], "'right' can lead to 3 positions there; give the board instead"),
    ],
)
def test_solve_refuses_what_is_not_there(arguments, complaint, capsys):
    assert run_cli(["solve", *arguments]) == 2
    said = capsys.readouterr()
    assert complaint in said.err
    assert said.out == ""


# -- check and bench ---------------------------------------------------------------------------------------------------
def test_check_lists_every_promise_of_a_game(capsys):
    assert run_cli(["check", "tictactoe", "--games", "3"]) == 0
    said = capsys.readouterr().out
    assert "global random generators are untouched" in said
    assert "BROKEN" not in said


def test_check_takes_a_game_of_ones_own_and_fails_when_it_breaks_a_promise(tmp_path, monkeypatch, capsys):
    (tmp_path / "my_games.py").write_text(
        "from nlrl.envs.tictactoe import TicTacToe\n"
        "class Forgetful(TicTacToe):\n"
        "    def to_text(self, state):\n"
        "        return super().to_text(self.initial_states()[0])\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert run_cli(["check", "my_games:Forgetful", "--games", "2"]) == 2
    said = capsys.readouterr()
    assert "BROKEN" in said.out
    assert "my_games:Forgetful breaks" in said.err
    assert run_cli(["check", "my_games:Nothing"]) == 2
    assert "write `package.module:name`" in capsys.readouterr().err


def test_bench_hands_its_arguments_on(capsys):
    with pytest.raises(SystemExit) as done:
        run_cli(["bench", "tictactoe", "--", "--help"])
    assert done.value.code == 0
    assert "--by-iteration" in capsys.readouterr().out


# -- report and verify -------------------------------------------------------------------------------------------------
def test_report_prints_a_finished_run_wide_enough_to_read(finished):
    done = nlrl("report", finished, env={**os.environ, "COLUMNS": ""})
    assert done.returncode == 0
    assert "…" not in done.stdout
    assert "exploitability" in done.stdout


def test_verify_tells_a_whole_run_from_a_damaged_one(finished, tmp_path, capsys):
    import shutil

    assert run_cli(["verify", str(finished)]) == 0
    said = capsys.readouterr().out
    assert re.search(r"15 committed stages, 0 in progress; 30 files, [\d,]+ bytes, [\d,]+ records\n", said)
    assert said.endswith(f"{finished}: whole\n")
    copy = shutil.copytree(finished, tmp_path / "copy")
    records = copy / "iterations" / "001" / "targets" / "records.jsonl"
    records.write_bytes(records.read_bytes()[:-40])
    with pytest.raises(SystemExit) as done:
        run_cli(["verify", str(copy)])
    assert done.value.code == 1
    said = capsys.readouterr()
    assert f"{records}: bytes is" in said.out
    assert "problem(s)" in said.err


def test_report_and_verify_refuse_what_is_no_run(tmp_path, capsys):
    assert run_cli(["report", str(tmp_path)]) == 2
    assert "is not a run's folder (no config.toml in it)" in capsys.readouterr().err
    assert run_cli(["verify", str(tmp_path)]) == 2


# -- eval --------------------------------------------------------------------------------------------------------------
def test_eval_measures_the_agent_of_a_run_as_the_run_did(finished, tmp_path, capsys):
    out = tmp_path / "figures.json"
    arguments = ["--opponents", "random", "minimax", "--games", "20", "--out", str(out)]
    assert run_cli(["eval", str(finished), *arguments]) == 0
    figures = json.loads(out.read_text())
    manifest = json.loads((finished / "iterations" / "002" / "evaluation" / "manifest.json").read_text())["metrics"]
    for name, expected in manifest["exact"]["against"].items():
        assert figures["exact"]["against"][name] == pytest.approx(expected, abs=1e-6)
    assert figures["exact"]["exploitability"] == pytest.approx(manifest["exact"]["exploitability"], abs=1e-6)
    assert figures["sampled"]["random"]["games"] == 20
    printed = capsys.readouterr().out
    assert "Exactly, over every game" in printed
    assert "minimax" in printed


def test_eval_at_a_temperature_samples_only(finished, tmp_path):
    out = tmp_path / "figures.json"
    assert run_cli(["eval", str(finished), "--temperature", "1", "--games", "4", "--out", str(out)]) == 0
    assert json.loads(out.read_text())["exact"] is None


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--games", "-4"], "games: -4"),
        (["--temperature", "-1"], "temperature: -1"),
        (["--opponents", "nobody"], "unknown opponent 'nobody'; known: random"),
        (["--game", "chess"], "unknown game 'chess'"),
    ],
)
def test_eval_refuses_what_cannot_be_measured(finished, arguments, complaint, capsys):
    assert run_cli(["eval", str(finished), *arguments]) == 2
    assert complaint in capsys.readouterr().err


def test_eval_of_an_unfinished_run_says_how_to_finish_it(finished, tmp_path, capsys):
    (tmp_path / "config.toml").write_text((finished / "config.toml").read_text())
    assert run_cli(["eval", str(tmp_path)]) == 2
    assert "no finished agent yet; finish it with `nlrl run" in capsys.readouterr().err


# -- play --------------------------------------------------------------------------------------------------------------
def test_a_person_plays_a_whole_game_on_the_terminal(finished):
    done = nlrl("play", "tictactoe", "--agent", finished, input="\n".join(list("123456789") * 9))
    assert done.returncode == 0
    assert "your move (1 2 3 4 5 6 7 8 9):" in done.stdout
    assert "X: " in done.stdout
    assert "best_move: " in done.stdout
    assert any(end in done.stdout for end in ("You have won.", "You have lost.", "You drew."))


@pytest.mark.parametrize("seat", [0, 1])
def test_illegal_moves_are_asked_again_and_the_result_is_the_persons(finished, seat):
    told, asked = [], []

    def read(prompt):
        asked.append(prompt)
        legal = prompt.split("(")[1].split(")")[0].split()
        return "12" if len(asked) == 1 else "x" if len(asked) == 2 else f" {legal[0]} "

    result = play_terminal("tictactoe", str(finished), seat, read, told.append)
    assert result in ("won", "lost", "drawn")
    assert told.count("That is not a legal move.") == 2
    assert any(line.startswith("XO"[seat] + ": ") for line in told)
    assert ("drew" if result == "drawn" else result) in told[-1]


def test_an_agent_without_a_legal_move_forfeits(monkeypatch, finished):
    from nlrl.testing import ScriptedModel

    monkeypatch.setattr("nlrl.orchestration.play_terminal.open_model", lambda config: ScriptedModel({"": "I pass."}))
    told = []
    assert play_terminal("tictactoe", str(finished), 1, lambda prompt: "1", told.append) == "won"
    assert told[-1] == "That is no legal move: the agent forfeits."


def test_play_refuses_a_seat_that_is_not_there(finished, capsys):
    assert run_cli(["play", "tictactoe", "--agent", str(finished), "--seat", "2"]) == 2
    assert "seat: 2 is not a seat of tictactoe; there are 2, from 0" in capsys.readouterr().err


def test_a_person_who_leaves_gets_no_traceback(finished):
    done = nlrl("play", "tictactoe", "--agent", finished, input="1\n")
    assert "Traceback" not in done.stderr
    assert done.returncode == 130


def test_view_refuses_a_folder_that_is_not_there(tmp_path, capsys):
    assert run_cli(["view", str(tmp_path / "nothing")]) == 2
    assert "nothing" in capsys.readouterr().err


@pytest.mark.parametrize(("given", "expected"), [(None, "2000"), ("7", "7")])
def test_threads_spin_shortly_unless_somebody_has_said_otherwise(monkeypatch, given, expected):
    monkeypatch.setattr(sys, "argv", ["nlrl", "--version-of-nothing"])
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    if given:
        monkeypatch.setenv("GOMP_SPINCOUNT", given)
    with pytest.raises(SystemExit):
        main()
    assert os.environ["GOMP_SPINCOUNT"] == expected
