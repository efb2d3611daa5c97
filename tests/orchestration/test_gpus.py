"""Whose GPUs are whose, where models in vLLM are served and trained."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from nlrl.backbones.tuning.settings import Tuning
from nlrl.errors import NLRLError
from nlrl.orchestration import gpus
from nlrl.orchestration.checks import check
from nlrl.orchestration.config import ModelConfig, RunConfig, validated
from nlrl.orchestration.gpus import gpus_of

NATIVE = 0.25


def model(**fields) -> ModelConfig:
    return ModelConfig.model_validate({"kind": "vllm", "name": "folder"} | fields)


@pytest.fixture(params=[True, False], ids=["gpus", "no gpus"])
def there(request, monkeypatch) -> bool:
    monkeypatch.setattr(gpus, "_has_gpus", lambda: request.param)
    return request.param


def test_only_vllm_takes_whole_gpus_and_only_where_there_are_some(there):
    assert gpus_of(ModelConfig(), NATIVE) == NATIVE
    assert gpus_of(ModelConfig(kind="openai", base_url="http://x"), NATIVE) == 0
    assert gpus_of(model(), NATIVE) == (1 if there else 0)
    assert gpus_of(model(options={"tensor_parallel_size": 4}), NATIVE) == (4 if there else 0)
    assert gpus_of(model(gpus=0.7), NATIVE) == 0.7


@pytest.mark.parametrize(
    ("tuning", "server"),
    [({}, 0.5), ({"workers": 4}, 0.4), ({"gpus_per_worker": 0.3}, 0.7), ({"workers": 2, "gpus_per_worker": 1}, 1.0)],
)
def test_a_server_and_a_worker_share_one_gpu_at_most(monkeypatch, tuning, server):
    monkeypatch.setattr(gpus, "_has_gpus", lambda: True)
    found = gpus_of(model(tuning=tuning), NATIVE)
    assert found == pytest.approx(server)
    share = Tuning(**tuning).gpu_share
    assert found + share == pytest.approx(1) or share == 1


@pytest.mark.parametrize(("tuning", "named"), [
    ({"workers": 2, "gpus_per_worker": 0.5}, "each needs a GPU of its own"),
    ({"sharding": "fsdp2"}, "at least 2"),
    ({"rank": 0}, "rank"),
    ({"ranks": 8}, "ranks"),
])  # fmt: skip
def test_tuning_that_cannot_work_is_refused(tuning, named):
    with pytest.raises(ValidationError, match=named):
        model(tuning=tuning)


def test_only_vllm_is_tuned_and_only_what_is_tuned_is_trained():
    with pytest.raises(NLRLError, match="tuning is for kind 'vllm', not 'native'"):
        validated(RunConfig, {"model": {"tuning": {}}}, "test")
    assert model(tuning={}).trainable
    assert model(tuning={}).prompt_style == "instruct"
    assert not model().trainable
    with pytest.raises(NLRLError, match=r"vllm with \[model.tuning\]"):
        check(RunConfig(model=model()))
    check(RunConfig(model=model(tuning={})))
