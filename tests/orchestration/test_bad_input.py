"""Bad input of every kind: one line that says what is wrong and what would be right; nothing committed is lost."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from nlrl.errors import NLRLError
from nlrl.orchestration.cli import run_cli
from nlrl.orchestration.run_folder import verify

NLRL = str(Path(sys.executable).with_name("nlrl"))


@pytest.fixture
def refused(config_file, tmp_path, capsys):
    """Runs a config and expects one line on stderr; returns it."""

    def run(*overrides, **changes):
        code = run_cli(["run", str(config_file(**changes)), *overrides])
        errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("nlrl: ")]
        assert code == 2
        assert len(errors) == 1
        return errors[0]

    return run


# -- configs -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("itertions = 3", "unknown key 'itertions'; known here: .*iterations"),
        ("iterations = -3", r"iterations: .*greater than 0 \(got -3\)"),
        ("seed = 'one'", r"seed: .*integer.*\(got 'one'\)"),
        ("[rollout]\ngames = -1", r"rollout.games: .*greater than 0 \(got -1\)"),
        ("seed = = 1", "is not valid TOML: .*line 1"),
    ],
)
def test_a_bad_config_file_is_refused_before_anything_starts(tmp_path, line, complaint):
    path = tmp_path / "config.toml"
    path.write_text(f"{line}\n")
    done = subprocess.run([NLRL, "run", str(path)], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode == 2
    (error,) = done.stderr.splitlines()
    assert re.match(f"nlrl: {path}:? {complaint}", error)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "overrides",
    [("--rollout.games", "-5"), ("--targets.continuations", "0"), ("--seed", "-1"), ("--actor.epochs", "0")],
)
def test_a_bad_override_is_refused_like_a_bad_file(refused, tmp_path, overrides):
    error = refused(*overrides)
    assert error.startswith(f"nlrl: command line: {overrides[0][2:]}: ")
    assert f"(got {overrides[1]})" in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"game": {"name": "chess"}}, "game: unknown game 'chess'; known: breakthrough, frozen_lake, maze, tictactoe"),
        ({"game": {"params": {"size": 4}}}, "game: game 'tictactoe' has no parameter 'size'"),
        (
            {"rollout": {"opponents": ["random", "stockfish"]}},
            "rollout.opponents: unknown opponent 'stockfish'; known: random,",
        ),
        ({"rollout": {"opponents": ["epsilon(2,random)"]}}, "rollout.opponents: 'epsilon(2,random)': the probability"),
        ({"evaluation": {"opponents": ["minmax"]}}, "evaluation.opponents: unknown opponent 'minmax'; known: "),
        ({"evaluation": {"opponents": ["self"]}}, "evaluation.opponents: unknown opponent 'self'; known: "),
        ({"evaluation": {"probes": ["1 1"]}}, "evaluation.probes: '1' in '1 1' is not a legal move there"),
        ({"evaluation": {"probes": ["five"]}}, "evaluation.probes: 'five' in 'five' is not a legal move there"),
        ({"evaluation": {"probes": ["1 4 2 5 3"]}}, "evaluation.probes: '1 4 2 5 3' ends the game"),
        ({"model": {"kind": "vllm", "name": "llama"}}, "model.kind is 'vllm': only native models, and vllm with"),
        ({"model": {"style": "formal"}}, None),
    ],
)
def test_what_does_not_exist_is_refused_before_a_folder_is_made(refused, tmp_path, changes, complaint):
    if complaint is None:
        with pytest.raises(NLRLError, match=r"model.style: .*'auto', 'plain' or 'instruct'"):
            refused(**changes)
        return
    assert complaint in refused(**changes)
    assert not (tmp_path / "run").exists()


# -- models ------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A tiny model of our own with the vocabulary of its words: it can be loaded, and has learned nothing."""
    pytest.importorskip("torch")
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from nlrl.backbones import TransformerConfig, TransformerForCausalLM, save

    words = ["<bos>", "<eos>", "<pad>", "<answer>", *"abcdefgh"]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    template = "{{ bos_token }}{{ messages[0]['content'] }}<answer>"
    ends = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "chat_template": template}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, **ends)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save(TransformerForCausalLM(TransformerConfig(vocab_size=16, **sizes)), tokenizer, folder)
    return folder


def native(folder):
    return {"kind": "native", "name": str(folder), "device": "cpu", "max_tokens": 4}


def edited(checkpoint, tmp_path, file, change):
    """A copy of the checkpoint with one of its JSON files changed."""
    folder = shutil.copytree(checkpoint, tmp_path / "model")
    content = json.loads((folder / file).read_text())
    change(content)
    (folder / file).write_text(json.dumps(content))
    return folder


def test_a_missing_model_is_named_with_those_that_come_along(refused):
    assert "no model 'no-such-base': it is no folder, and the bundled models are: " in refused(
        model=native("no-such-base")
    )


def test_a_missing_scripted_model_is_named(refused):
    error = refused(model={"name": "no.such.module"})
    assert "model.name: scripted models are modules, and 'no.such.module' cannot be imported" in error


def test_an_unknown_architecture_is_named_with_those_known(refused, checkpoint, tmp_path):
    folder = edited(checkpoint, tmp_path, "config.json", lambda config: config.update(model_type="gpt2"))
    error = refused(model=native(folder))
    assert f"{folder}/config.json: model_type is 'gpt2'; known are bimamba, diff_transformer, hymba, ngpt" in error
    assert "transformer, diffllama, llama, mamba2" in error


def test_weights_of_another_architecture_are_named_by_their_tensor(refused, checkpoint, tmp_path):
    folder = edited(checkpoint, tmp_path, "config.json", lambda config: config.update(hidden_size=32))
    error = refused(model=native(folder))
    assert f"{folder}: tensor " in error
    assert "has shape" in error


def test_another_vocabulary_is_refused(refused, checkpoint, tmp_path):
    def swap(tokenizer):
        vocab = tokenizer["model"]["vocab"]
        vocab["a"], vocab["b"] = vocab["b"], vocab["a"]

    folder = edited(checkpoint, tmp_path, "tokenizer.json", swap)
    error = refused(model=native(folder))
    assert f"{folder}: the weights were saved with another vocabulary than that of {folder}/tokenizer.json" in error


def test_an_option_that_a_model_does_not_take_is_refused(refused, checkpoint):
    assert "have no option 'max_bach', but " in refused(model=native(checkpoint) | {"options": {"max_bach": 3}})
    endpoint = {"kind": "openai", "name": "m", "base_url": "http://127.0.0.1:1/v1", "options": {"retries": 3}}
    assert "model 'm': unknown key 'retries'; known here: " in refused(teacher=endpoint)


def test_a_config_that_failed_to_start_can_be_mended_in_place(refused, config_file):
    """A run's folder belongs to its config from the first result on, not before."""
    refused(model={"name": "no.such.module"})
    mended = ["run", str(config_file(iterations=1, rollout={"games": 2}, evaluation={"games": 0}))]
    assert run_cli(mended) == 0


def test_a_model_that_knows_nothing_ends_in_one_line_too(refused, checkpoint, tmp_path):
    error = refused(model=native(checkpoint), rollout={"games": 4})
    assert "iteration 1: there is nothing to train the critic on" in error
    assert str(tmp_path / "run/iterations/001") in error
    assert str(checkpoint) in error


def test_committed_weights_of_another_model_are_not_loaded(checkpoint, tmp_path):
    from nlrl.backbones import TransformerConfig, TransformerForCausalLM, load, save
    from nlrl.orchestration.trainer import TrainerActor

    _, tokenizer = load(checkpoint)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    save(TransformerForCausalLM(TransformerConfig(vocab_size=16, **sizes)), tokenizer, tmp_path / "other")
    TrainerActor(str(tmp_path / "other"), "cpu").save("critic", str(tmp_path / "weights.safetensors"))
    trainer = TrainerActor(str(checkpoint), "cpu")
    with pytest.raises(
        NLRLError, match=r"weights.safetensors does not hold weights of .*tiny.*: size mismatch for .*model.name"
    ):
        trainer.load("critic", str(tmp_path / "weights.safetensors"))
    (tmp_path / "torn").write_bytes((tmp_path / "weights.safetensors").read_bytes()[:-9])
    for name in ("torn", "missing"):  # missing: of a stage whose manifest is there
        with pytest.raises(NLRLError, match=f"{name} does not hold weights"):
            trainer.load("critic", str(tmp_path / name))


def test_an_endpoint_that_is_down_costs_nothing_that_is_committed(
    refused, config_file, tmp_path, finished, committed_files
):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    url = f"http://127.0.0.1:{port}/v1"
    options = {"max_retries": 1, "retry_delay": 0.01, "timeout": 2}
    error = refused(teacher={"kind": "openai", "name": "judge", "base_url": url, "api_key_env": "", "options": options})
    assert f"127.0.0.1:{port}" in error
    stages = {
        str(path.parent.relative_to(tmp_path / "run/iterations")) for path in tmp_path.glob("run/**/manifest.json")
    }
    assert stages == {"000/evaluation", "001/rollout"}  # the teacher is first needed for G1
    assert verify(tmp_path / "run") == []
    committed = committed_files(tmp_path / "run")
    for stage in stages:
        path = f"iterations/{stage}/manifest.json"
        assert committed[path] == committed_files(finished)[path]


# -- folders -----------------------------------------------------------------------------------------------------------
def test_a_folder_of_another_config_is_refused_with_the_difference(
    config_file, finished, tmp_path, capsys, committed_files
):
    shutil.copytree(finished, tmp_path / "run")
    assert run_cli(["run", str(config_file(seed=5, rollout={"games": 99}))]) == 2
    error = capsys.readouterr().err
    assert f"{tmp_path / 'run'} was made by another config: " in error
    assert "seed is 0 there and 5 here" in error
    assert "rollout.games is 16 there and 99 here" in error
    assert committed_files(tmp_path / "run") == committed_files(finished)


def test_a_folder_that_is_no_run_is_refused(refused, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/thesis.tex").write_text("years of work")
    assert "holds thesis.tex but no config.toml: not a run. Use a new folder for `out`" in refused()
    assert (tmp_path / "run/thesis.tex").read_text() == "years of work"


def test_a_folder_that_cannot_be_written_is_refused(refused, tmp_path):
    (tmp_path / "run").write_text("a file")
    assert f"{tmp_path / 'run'}: cannot be used as a run's folder" in refused()


# -- full disks --------------------------------------------------------------------------------------------------------
def limited(size):
    """Makes files longer than `size` bytes impossible, as a full disk would."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@pytest.mark.parametrize(
    ("size", "cut"), [(100, "config.toml"), (8_000, "iterations/000/evaluation"), (130_000, "iterations/001/targets")]
)
def test_a_full_disk_is_one_error_and_the_run_goes_on_when_there_is_room(
    config_file, tmp_path, finished, committed_files, size, cut
):
    command = [NLRL, "run", str(config_file())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, preexec_fn=limited(size))
    assert done.returncode == 2, done.stderr
    error = done.stderr.splitlines()[-1]
    assert error.startswith("nlrl: ")
    assert str(tmp_path / "run" / cut) in error
    assert "File too large" in error
    assert "Traceback" not in done.stderr
    before = committed_files(tmp_path / "run")
    assert verify(tmp_path / "run") == [] or size == 100
    assert run_cli(command[1:]) == 0
    after = committed_files(tmp_path / "run")
    assert after == committed_files(finished)
    assert {path: after[path] for path in before if path.endswith("manifest.json")} == {
        path: content for path, content in before.items() if path.endswith("manifest.json")
    }


def test_no_room_that_no_writer_of_ours_met_is_one_error_too(tmp_path, monkeypatch, capsys):
    def full(*args, **named):
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "temporary"))

    monkeypatch.setattr("nlrl.orchestration.cli.run_command", full)
    assert run_cli(["run", "any.toml"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("nlrl: ")
    assert str(tmp_path / "temporary") in told
    assert "run the same command again" in told


def test_an_agent_that_cannot_be_saved_is_an_error_of_its_folder(checkpoint, tmp_path):
    from nlrl.orchestration.trainer import TrainerActor

    (tmp_path / "run").write_text("in the way")
    with pytest.raises(NLRLError, match=rf"{tmp_path}/run/agent: cannot be written: .*rerun the same command"):
        TrainerActor(str(checkpoint), "cpu").export("actor", str(tmp_path / "run/agent"))


def test_a_metrics_file_that_cannot_grow_stops_the_run_with_its_name(finished, tmp_path, config_file):
    folder = shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(folder / "iterations/002")
    path = folder / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-2]))
    size = os.path.getsize(path) + 10
    filler = max(file.stat().st_size for file in folder.rglob("*") if file.is_file() and file != path)
    with open(path, "ab") as file:  # the longest file by far, so that the limit meets it alone
        while file.tell() < filler * 3:
            file.write(lines[0])
    size = os.path.getsize(path) + 10
    command = [NLRL, "run", str(config_file())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, preexec_fn=limited(size))
    assert done.returncode == 2
    assert f"nlrl: {path}: cannot be written: File too large" in done.stderr
    assert verify(folder) == []
