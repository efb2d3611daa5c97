"""The config: what is refused and how, that it survives the way through TOML, and that every field explains itself."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from pydantic import BaseModel

from nlrl.backbones import registry
from nlrl.errors import NLRLError
from nlrl.orchestration.config import VOLATILE, ModelConfig, RunConfig, load_config, read_toml, to_toml, validated
from nlrl.orchestration.overrides import overridden

ROOT = Path(__file__).parents[2]


def config(**values):
    return validated(RunConfig, values, "somewhere")


def fields(model=RunConfig, path=()):
    """Every field of a config with its dotted name."""
    for name, field in model.model_fields.items():
        inner = next((o for o in (field.annotation, *getattr(field.annotation, "__args__", ())) if is_section(o)), None)
        yield ".".join((*path, name)), field, inner
        if inner:
            yield from fields(inner, (*path, name))


def is_section(kind):
    return isinstance(kind, type) and issubclass(kind, BaseModel)


# -- what is refused ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"iteration": 3}, "unknown key 'iteration'; known here: .*iterations"),
        ({"rollout": {"game": 3}}, "unknown key 'rollout.game'; known here: .*games.*opponents"),
        ({"teacher": {"kin": "vllm"}}, "unknown key 'teacher.kin'; known here: .*kind"),
        ({"rollout": {"games": -8}}, r"rollout.games: .*greater than 0 \(got -8\)"),
        ({"iterations": 0}, r"iterations: .*greater than 0 \(got 0\)"),
        ({"seed": -1}, r"seed: .*\(got -1\)"),
        ({"targets": {"continuations": 10}}, r"targets.continuations: .*less than or equal to 9 \(got 10\)"),
        ({"targets": {"texts_min": 5, "texts_max": 2}}, r"targets: .*texts_min \(5\) must not exceed texts_max \(2\)"),
        ({"critic": {"replay_fraction": 1.0}}, r"critic.replay_fraction: .*less than 1 \(got 1.0\)"),
        ({"actor": {"learning_rate": "fast"}}, r"actor.learning_rate: .*number.*\(got 'fast'\)"),
        ({"model": {"kind": "gguf"}}, r"model.kind: .*'native', 'vllm', 'openai' or 'scripted' \(got 'gguf'\)"),
        ({"teacher": {"kind": "openai", "name": "m"}}, "teacher: .*base_url is needed with kind 'openai'"),
        ({"improvement": {"verdict": "best"}}, r"improvement.verdict: .*\(got 'best'\)"),
        ({"control": "shuffled"}, "control: .*'none', 'shuffled_g1' or 'shuffled_evaluations'"),
        ({"max_minutes": 0}, r"max_minutes: .*greater than 0 \(got 0\)"),
        ({"name": "a/b"}, "name: .*without '/'"),
        ({"name": ""}, "name: .*plain word"),
        ({"trackers": ["excel"]}, "trackers.0: .*tensorboard"),
        ({"cluster": {"threads": -1}}, r"cluster.threads: .*\(got -1\)"),
    ],
)
def test_what_cannot_be_is_refused_by_field_value_and_what_would_be_right(values, complaint):
    with pytest.raises(NLRLError, match=rf"^somewhere: {complaint}") as caught:
        config(**values)
    assert "\n" not in str(caught.value)


# -- the backbone, which is a name -------------------------------------------------------------------------------------
@pytest.fixture
def bases(tmp_path, monkeypatch):
    """Two architectures with a bundled base, whatever ships."""
    for name in ("transformer-base", "diff-transformer-base"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").touch()
    monkeypatch.setattr(registry, "BUNDLED", tmp_path)


@pytest.mark.parametrize("kind", ["transformer", "diff_transformer"])
def test_a_backbone_selects_its_bundled_base(bases, kind):
    model = config(model={"backbone": kind}).model
    assert model.name == f"{kind.replace('_', '-')}-base"
    assert model.backbone is None, "one field says which model"
    assert overridden(load_config(ROOT / "configs/tictactoe.toml"), ["--model.backbone", kind]).model == model


def test_the_last_word_about_the_model_counts(bases):
    default = config(model={"backbone": "diff_transformer"})
    assert overridden(default, ["--model.name", "runs/mine/agent"]).model.name == "runs/mine/agent"
    default = config(model={"name": "runs/mine/agent"})
    assert overridden(default, ["--model.backbone", "diff_transformer"]).model.name == "diff-transformer-base"


def test_a_run_with_a_backbone_is_the_run_with_its_base(bases):
    assert to_toml(config(model={"backbone": "transformer"})) == to_toml(config())


@pytest.mark.parametrize("wrong", ["hymba", "transformer-base", "gpt2", ""])
def test_a_backbone_without_a_bundled_base_is_refused_with_those_that_have_one(bases, wrong):
    said = rf"model.backbone: .*bundled base are diff_transformer, transformer \(got '{wrong}'\)"
    with pytest.raises(NLRLError, match=said):
        config(model={"backbone": wrong})


def test_a_backbone_is_for_native_models(bases):
    with pytest.raises(NLRLError, match=r"model: .*backbone is for kind 'native', not 'vllm'"):
        config(model={"kind": "vllm", "backbone": "transformer"})


def test_all_mistakes_are_named_at_once():
    with pytest.raises(NLRLError, match=r"seed: .*; rollout.games: "):
        config(seed=-1, rollout={"games": 0})


def test_a_file_is_named_with_its_mistake(tmp_path):
    path = tmp_path / "run.toml"
    with pytest.raises(NLRLError, match=rf"config file {path} does not exist"):
        load_config(path)
    path.write_text("seed = = 3")
    with pytest.raises(NLRLError, match=rf"{path} is not valid TOML: .*line 1"):
        load_config(path)
    path.write_text("[rollout]\ngamse = 3\n")
    with pytest.raises(NLRLError, match=rf"{path}: unknown key 'rollout.gamse'"):
        load_config(path)
    with pytest.raises(NLRLError, match=rf"{tmp_path}"):
        load_config(tmp_path)


def test_a_file_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "run.toml").write_bytes(b"\xff\xfe seed")
    with pytest.raises(NLRLError, match=r"run.toml is not valid TOML"):
        load_config(tmp_path / "run.toml")


def test_a_config_cannot_be_changed():
    from pydantic import ValidationError

    with pytest.raises(ValidationError, match="frozen"):
        config().seed = 3
    with pytest.raises(ValidationError, match="frozen"):
        config().rollout.games = 3


# -- TOML --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "values",
    [
        {},
        {"seed": 7, "out": "somewhere/else", "max_minutes": 2.5, "trackers": []},
        {"rollout": {"opponents": ["random", "epsilon(0.25,minimax)", "self"]}},
        {"teacher": {"kind": "openai", "name": 'a "quoted"\\ name', "base_url": "http://h/v1"}},
        {"model": {"options": {"max_batch": 3, "cuda_graphs": False, "tags": ["a", "b"]}}},
        {"game": {"params": {"layout": "small", "slippery": True}}, "critic": {"learning_rate": 1e-5}},
        {"teacher": {"kind": "vllm", "name": "llama", "options": {"extra": {"inner": {"deep": 1}}}}},
        {"name": "naïve \u2603 name"},
    ],
)
def test_a_config_reads_back_equal_from_its_toml(values, tmp_path):
    path = tmp_path / "config.toml"
    path.write_text(to_toml(config(**values)), encoding="utf-8")
    assert load_config(path) == config(**values)


def test_keys_that_toml_would_misread_are_quoted(tmp_path):
    values = {"model": {"options": {"a.b": 1, "c d": {"e": 2}}}}
    assert tomllib.loads(to_toml(config(**values)))["model"]["options"] == values["model"]["options"]


def test_what_is_not_set_is_not_written():
    assert "max_minutes" not in to_toml(config())
    assert "teacher" not in to_toml(config())


def test_every_config_in_the_repository_is_valid():
    found = [path for path in ROOT.glob("configs/**/*.toml") if path.parent.name != "pretrain"]
    for path in found:
        load_config(path)
    for path in ROOT.glob("configs/pretrain/*.toml"):
        from nlrl.orchestration.pretrain import load_pretrain_config

        load_pretrain_config(path)
    assert read_toml(ROOT / "pyproject.toml")["project"]["name"] == "nlrl"


# -- meaning -----------------------------------------------------------------------------------------------------------
def test_every_field_explains_itself():
    silent = [name for name, field, inner in fields() if not field.description and not (inner and inner.__doc__)]
    assert silent == []


def test_what_may_change_on_resume_exists():
    assert set(VOLATILE) <= {name for name, _, _ in fields()}


@pytest.mark.parametrize(
    ("values", "style", "trainable"),
    [
        ({}, "plain", True),
        ({"kind": "scripted", "name": "m"}, "plain", True),
        ({"kind": "vllm", "name": "m"}, "instruct", False),
        ({"kind": "openai", "name": "m", "base_url": "http://h/v1"}, "instruct", False),
        ({"kind": "vllm", "name": "m", "style": "plain"}, "plain", False),
        ({"style": "instruct"}, "instruct", True),
    ],
)
def test_a_models_kind_decides_its_prompts_and_whether_it_can_learn(values, style, trainable):
    model = ModelConfig(**values)
    assert (model.prompt_style, model.trainable) == (style, trainable)
