"""Fine-tuning of a Hugging Face model, apart from any run: a tiny random Llama with a chat template.

Runs where trl and peft are installed (`make test-vllm`). transformers and PEFT, used plainly, are the reference.
"""

from __future__ import annotations

import dataclasses
import hashlib
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from nlrl.backbones.language_model import Message
from nlrl.backbones.tuning.settings import Tuning
from nlrl.backbones.tuning.weights import adapted, shapes
from nlrl.errors import NLRLError
from nlrl.orchestration.fits import FitSettings, PolicyFit, TextExample
from nlrl.orchestration.tuning import TuningActor, scratch_folder
from nlrl.testing.tiny_llama import BOS, EOS, make_tiny_llama

pytestmark = pytest.mark.skipif(
    find_spec("trl") is None or find_spec("peft") is None, reason="trl and peft are not installed here (make test-vllm)"
)

KINDS = ("lora", "full")
RATES = {"lora": 1e-2, "full": 3e-3}
STILL = 1e-12
"""A learning rate that changes nothing: the loss is that of the weights as they were."""


def chat(text: str, answer: str, weight: float = 1.0) -> TextExample:
    messages = (Message("system", "Choose a move."), Message("user", text))
    return TextExample(messages, answer, weight)


EXAMPLES = [
    chat(f"O to move; free: {i}", f"I try {i}. " + "O wins at 5. " * (i // 3) + f"\nbest_move: {i}")
    for i in range(1, 10)
]
WEIGHED = [dataclasses.replace(example, weight=4.0 ** (3 - i)) for i, example in enumerate(EXAMPLES)]


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "llama"
    make_tiny_llama(folder, spread=0.2)
    torch.set_num_threads(1)
    return folder


@pytest.fixture
def actor(base, tmp_path):
    def make(kind: str = "lora", name: str = "scratch", **settings) -> TuningActor:
        tuning = Tuning(**{"kind": kind, "rank": 4, "alpha": 8, "pass_size": 4, "max_length": 256} | settings)
        return TuningActor(str(base), tuning, str(tmp_path / name))

    return make


def settings(rate: float, epochs: int = 1, batch_size: int = 8, seed: int = 0) -> FitSettings:
    return FitSettings(rate, batch_size, epochs, seed)


def digest(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir() if path.is_file()}


def mean_loss(model, tokens) -> float:
    """Weighted mean cross-entropy of the answers, nats."""
    losses = weights = 0.0
    for example in tokens:
        row = torch.tensor([[*example.prompt, *example.completion]])
        with torch.no_grad():
            logits = model(input_ids=row).logits[0, len(example.prompt) - 1 : -1].float()
        found = torch.nn.functional.cross_entropy(logits, row[0, len(example.prompt) :], reduction="sum")
        losses += example.weight * found.item()
        weights += example.weight * len(example.completion)
    return losses / weights


def tokenizer_of(folder: Path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def load(folder: Path):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder).float().eval()


# --- what is learned


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_falls_and_goes_on_falling_in_the_next_round(actor, base, kind):
    trainer = actor(kind)
    first = trainer.fit("actor", EXAMPLES, settings(RATES[kind], epochs=8))
    second = trainer.fit("actor", EXAMPLES, settings(RATES[kind], epochs=8, seed=1))
    start = mean_loss(load(base), trainer.tokenised(EXAMPLES))
    assert second["loss"] < 0.6 * first["loss"] < 0.5 * start
    assert first["steps"] == 16
    assert first["examples"] == 72
    assert first["tokens"] == 8 * sum(map(len, trainer.tokenised(EXAMPLES)))


@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_only_answers_count_and_each_by_its_weight(actor, base, kind, checkpointing):
    trainer = actor(kind, checkpointing=checkpointing)
    metrics = trainer.fit("critic", WEIGHED, settings(STILL))
    assert metrics["loss"] == pytest.approx(mean_loss(load(base), trainer.tokenised(WEIGHED)), rel=1e-4)
    assert metrics["loss"] != pytest.approx(mean_loss(load(base), trainer.tokenised(EXAMPLES)), rel=1e-4)


def test_an_example_without_weight_teaches_nothing(actor):
    """One step over both: with weight 0 it is as if the other stood twice, which a mean does not see."""
    one, other = EXAMPLES[0], EXAMPLES[5]
    pairs = {"silent": [one, dataclasses.replace(other, weight=0.0)], "alone": [one, one], "both": [one, other]}
    found = {}
    for name, examples in pairs.items():
        trainer = actor("full", name=name)
        trainer.fit("actor", examples, settings(1e-3, batch_size=2))
        found[name] = trainer.weights("actor").tensors["lm_head.weight"]
    silent, both = ((found[name] - found["alone"]).abs().mean() for name in ("silent", "both"))
    assert silent < 0.02 * both


def test_prompts_are_rendered_once_with_one_first_token_and_answers_end(actor, base):
    (example,) = actor().tokenised([chat("  free: 7  ", "best_move: 7")])
    tokenizer = tokenizer_of(base)
    assert tokenizer.decode(example.completion) == f"best_move: 7{EOS}"
    prompt = tokenizer.decode(example.prompt)
    assert prompt.startswith(f"{BOS}<|start_header_id|>system<|end_header_id|>\n\nChoose a move.{EOS}")
    assert prompt.endswith("free: 7<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n")
    assert prompt.count(BOS) == 1
    assert tokenizer("x")["input_ids"][0] == tokenizer.bos_token_id, "else a second one would be no danger"


def test_long_examples_are_left_out_and_counted_never_cut(actor):
    trainer = actor(max_length=64)
    long = chat("O to move; free: " + "1 2 3 4 5 6 7 8 9 " * 20, "best_move: 1")
    metrics = trainer.fit("actor", [*EXAMPLES, long, long], settings(1e-3))
    assert (metrics["examples"], metrics["too_long"]) == (9, 2)
    with pytest.raises(NLRLError, match=r"max_length is 64, but the shortest of 1 examples has \d{3}"):
        trainer.fit("actor", [long], settings(1e-3))


# --- what is left


def test_lora_trains_adapters_and_leaves_the_base_alone(actor, base):
    before = digest(base)
    trainer = actor(targets=("q_proj", "v_proj"))
    trainer.fit("actor", EXAMPLES, settings(1e-2))
    found = trainer.weights("actor")
    assert {adapted(name).split(".")[-1] for name in found.tensors} == {"q_proj", "v_proj"}
    assert all(tensor.abs().sum() > 0 for name, tensor in found.tensors.items() if "lora_B" in name)
    assert digest(base) == before


def test_lora_reaches_every_linear_layer_but_the_output(actor, base):
    trainer = actor()
    trainer.fit("actor", EXAMPLES, settings(1e-2))
    linear = {name.removesuffix(".weight") for name, shape in shapes(base).items() if len(shape) == 2}
    layers = {adapted(name) for name in trainer.weights("actor").tensors}
    assert layers == linear - {"lm_head", "model.embed_tokens"}


def test_adapters_are_as_large_as_estimated(actor, base):
    from nlrl.benchmarks.memory import size_of

    trainer = actor()
    trainer.fit("actor", EXAMPLES[:2], settings(STILL))
    weights = sum(tensor.numel() for tensor in trainer.weights("actor").tensors.values())
    assert size_of(str(base)).adapter(4) == weights


def test_two_runs_never_share_a_folder_and_a_users_folder_stays(base, tmp_path):
    storage = tmp_path / "shared"
    storage.mkdir()
    (storage / "precious").write_text("kept")
    tuning = Tuning(storage=storage)
    one, other = (scratch_folder(tuning, tmp_path / run) for run in ("one", "other"))
    assert one != other
    TuningActor(str(base), tuning, str(one))
    TuningActor(str(base), tuning, str(one))
    assert (storage / "precious").read_text() == "kept"
    assert one.is_dir()
    assert scratch_folder(Tuning(), tmp_path / "one").parent == tmp_path / "one"


def test_what_a_dead_runs_processes_still_write_reaches_nobody(actor):
    orphan = actor()
    orphan.fit("actor", EXAMPLES[:2], settings(1e-2))
    heir = actor()
    orphan.fit("critic", EXAMPLES[:2], settings(1e-2))
    for network in ("actor", "critic"):
        with pytest.raises(NLRLError, match="not been trained"):
            heir.weights(network)


def test_the_networks_are_apart(actor):
    trainer = actor()
    trainer.fit("actor", EXAMPLES, settings(1e-2))
    before = trainer.weights("actor").tensors
    trainer.fit("critic", EXAMPLES, settings(1e-2, seed=1))
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.weights("actor").tensors.items())


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_goes_on_from_its_file_as_if_nothing_had_happened(actor, tmp_path, kind):
    whole, first = actor(kind, name="whole"), settings(RATES[kind], epochs=2)
    second = settings(RATES[kind], epochs=2, seed=1)
    whole.fit("actor", EXAMPLES, first)
    whole.save("actor", str(tmp_path / "first.safetensors"))
    resumed = actor(kind, name="resumed")
    resumed.load("actor", str(tmp_path / "first.safetensors"))
    files = []
    for trainer in (whole, resumed):
        trainer.fit("actor", EXAMPLES, second)
        files.append(tmp_path / f"{len(files)}.safetensors")
        trainer.save("actor", str(files[-1]))
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_a_running_mean_begins_as_a_copy_and_goes_on_from_its_file(actor, tmp_path, kind):
    trainer, resumed = actor(kind), actor(kind, name="resumed")
    trainer.fit("critic", EXAMPLES, settings(RATES[kind]))
    trainer.average("critic", "target", 0.25)
    first = trainer.weights("critic").tensors
    assert all(torch.equal(tensor, first[name]) for name, tensor in trainer.weights("target").tensors.items())
    for network, path in (("critic", "critic.safetensors"), ("target", "target.safetensors")):
        trainer.save(network, str(tmp_path / path))
        resumed.load(network, str(tmp_path / path))
    trainer.fit("critic", EXAMPLES, settings(RATES[kind], seed=1))
    trainer.average("critic", "target", 0.25)
    trained, mean = trainer.weights("critic").tensors, trainer.weights("target").tensors
    assert any(not torch.equal(tensor, first[name]) for name, tensor in trained.items())
    for name, tensor in mean.items():
        torch.testing.assert_close(tensor, first[name] + (trained[name] - first[name]) / 4)
    resumed.fit("critic", EXAMPLES, settings(RATES[kind], seed=1))
    resumed.average("critic", "target", 0.25)
    assert all(torch.equal(tensor, mean[name]) for name, tensor in resumed.weights("target").tensors.items())


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_the_exported_model(actor, base, tmp_path, kind):
    trainer = actor(kind)
    trainer.fit("actor", EXAMPLES, settings(RATES[kind], epochs=4))
    trainer.export("actor", str(tmp_path / "agent"))
    read = trainer.tokenised(EXAMPLES[:2])
    found = trainer.score("actor", [example.messages for example in EXAMPLES[:2]], [one.completion for one in read])
    for folder, same in ((tmp_path / "agent", True), (base, False)):
        model = load(folder)
        for example, scores in zip(read, found, strict=True):
            row = torch.tensor([[*example.prompt, *example.completion]])
            with torch.no_grad():
                every = model(input_ids=row).logits[0, :-1].log_softmax(-1)
            wanted = every[len(example.prompt) - 1 :].gather(1, row[0, len(example.prompt) :, None])[:, 0]
            assert torch.allclose(torch.tensor(scores), wanted, atol=1e-3) == same


@pytest.mark.parametrize("kind", KINDS)
def test_an_export_loads_with_transformers_and_says_the_same(actor, base, tmp_path, kind):
    trainer, network = actor(kind), tmp_path / "network"
    trainer.fit("actor", EXAMPLES, settings(RATES[kind], epochs=4))
    trainer.export("actor", str(tmp_path / "agent"))
    trainer.weights("actor").write_folder(network, base)
    exported = load(tmp_path / "agent")
    if kind == "lora":
        from peft import PeftModel

        tuned = PeftModel.from_pretrained(load(base), network).eval()
    else:
        tuned = load(network)
    row = torch.tensor([trainer.tokenised(EXAMPLES)[0].prompt])
    with torch.no_grad():
        assert torch.allclose(exported(input_ids=row).logits, tuned(input_ids=row).logits, atol=1e-4)
        assert not torch.allclose(exported(input_ids=row).logits, load(base)(input_ids=row).logits, atol=1e-2)
    assert tokenizer_of(tmp_path / "agent").chat_template == tokenizer_of(base).chat_template
    assert shapes(tmp_path / "agent") == shapes(base)


# --- what is refused


@pytest.mark.parametrize(("kind", "spoil", "named"), [
    ("lora", lambda path: path.write_bytes(b"torn"), "cannot be read"),
    ("lora", lambda path: path.unlink(), "cannot be read"),
    ("full", lambda path: None, "holds an adapter, but model.tuning.kind is 'full'"),
])  # fmt: skip
def test_a_file_of_something_else_is_refused_by_name(actor, tmp_path, kind, spoil, named):
    trainer, path = actor("lora", name="lora"), tmp_path / "weights.safetensors"
    trainer.fit("actor", EXAMPLES[:2], settings(STILL))
    trainer.save("actor", str(path))
    spoil(path)
    with pytest.raises(NLRLError, match=named):
        actor(kind, name="other").load("actor", str(path))


def test_weights_of_another_base_are_refused(actor, tmp_path):
    trainer, path = actor("full"), tmp_path / "weights.safetensors"
    trainer.fit("actor", EXAMPLES[:2], settings(STILL))
    trainer.save("actor", str(path))
    make_tiny_llama(tmp_path / "larger", layers=3)
    other = TuningActor(str(tmp_path / "larger"), Tuning(kind="full"), str(tmp_path / "scratch of other"))
    with pytest.raises(NLRLError, match=r"do not fit .*larger.*layers\.2"):
        other.load("actor", str(path))


def test_what_cannot_be_trained_is_refused(actor):
    trainer = actor(targets=("nowhere",))
    with pytest.raises(NLRLError, match="targets"):
        trainer.fit("actor", EXAMPLES, settings(1e-3))
    with pytest.raises(NLRLError, match="PolicyFit"):
        trainer.fit("actor", [], PolicyFit(1e-3, 8, 1, 0))
    with pytest.raises(NLRLError, match="critic has not been trained"):
        trainer.weights("critic")
    with pytest.raises(NLRLError, match="diverged"):
        actor("full", name="wild").fit("actor", EXAMPLES, settings(1e9, epochs=3))


def test_sharding_needs_gpus_and_several_workers(actor, monkeypatch):
    with pytest.raises(ValueError, match="set workers to at least 2"):
        Tuning(sharding="fsdp2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(NLRLError, match="fsdp2"):
        actor(sharding="fsdp2", workers=2).fit("actor", EXAMPLES, settings(1e-3))


# --- several workers


def in_ray(base: Path, scratch: Path, tuning: Tuning, *rounds):
    """Metrics of rounds on a Ray cluster, each (examples, settings), and the weights after them."""
    from nlrl.orchestration.cluster import Cluster

    with Cluster("ray", num_cpus=2) as cluster:
        handle = cluster.spawn(TuningActor, str(base), tuning, str(scratch), "ray", 2, num_cpus=0, name="trainer")
        metrics = [handle.call("fit", "actor", *each).result() for each in rounds]
        return metrics, handle.call("weights", "actor").result()


@pytest.mark.slow
def test_two_workers_of_ray_train_learn_what_one_process_learns(base, actor, tmp_path):
    """Two steps of one batch; then all nine examples, which two workers cannot share evenly, at a standstill."""
    tuning = Tuning(rank=4, alpha=8, pass_size=2, max_length=256, workers=2)
    rounds = [(WEIGHED[:8], settings(RATES["lora"], epochs=2)), (WEIGHED, settings(STILL))]
    metrics, tuned = in_ray(base, tmp_path / "two", tuning, *rounds)
    alone = actor()
    for found, each in zip(metrics, rounds, strict=True):
        expected = alone.fit("actor", *each)
        assert found["loss"] == pytest.approx(expected["loss"], rel=1e-3)
        assert {name: found[name] for name in ("examples", "tokens")} == {
            name: expected[name] for name in ("examples", "tokens")
        }
    for name, tensor in alone.weights("actor").tensors.items():
        assert torch.allclose(tuned.tensors[name], tensor, atol=1e-3)


@pytest.mark.slow
def test_scores_are_read_in_a_process_of_their_own_on_ray(base, actor, tmp_path):
    from nlrl.orchestration.cluster import Cluster

    alone, tuning = actor(), Tuning(rank=4, alpha=8, pass_size=4, max_length=256)
    alone.fit("actor", EXAMPLES[:4], settings(1e-2))
    alone.save("actor", str(tmp_path / "file"))
    asked = [example.messages for example in EXAMPLES[:2]], [(5, 6, 7), (8,)]
    with Cluster("ray", num_cpus=1) as cluster:
        handle = cluster.spawn(TuningActor, str(base), tuning, str(tmp_path / "ray"), "ray", 1, num_cpus=0)
        handle.call("load", "actor", str(tmp_path / "file")).result()
        found = handle.call("score", "actor", *asked).result()
    assert found == [pytest.approx(row, abs=1e-4) for row in alone.score("actor", *asked)]


@pytest.mark.slow
def test_what_a_worker_raises_is_raised_as_itself(base, tmp_path):
    from nlrl.orchestration.cluster import Cluster

    with Cluster("ray", num_cpus=1) as cluster:
        handle = cluster.spawn(TuningActor, str(base), Tuning(kind="full"), str(tmp_path), "ray", 1, num_cpus=0)
        with pytest.raises(NLRLError, match=r"^training diverged"):
            handle.call("fit", "actor", EXAMPLES, settings(1e9, epochs=3)).result()


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("kind", KINDS)
def test_shards_on_two_gpus_learn_what_one_learns(base, tmp_path, kind):
    both = []
    for sharding in ("none", "fsdp2"):
        tuning = Tuning(kind=kind, rank=4, alpha=8, pass_size=2, workers=2, sharding=sharding, gpus_per_worker=1)
        rounds = [(WEIGHED[:8], settings(RATES[kind], epochs=2, seed=seed)) for seed in range(2)]
        both.append(in_ray(base, tmp_path / sharding, tuning, *rounds))
    (plain, plain_weights), (sharded, sharded_weights) = both
    assert [m["loss"] for m in sharded] == pytest.approx([m["loss"] for m in plain], rel=0.05)
    assert sharded_weights.tensors.keys() == plain_weights.tensors.keys()
