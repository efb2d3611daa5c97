"""How models of a run share a device."""

import torch

from nlrl.orchestration.config import ModelConfig
from nlrl.orchestration.models import open_model, state_bytes

GIB = 2**30


def test_servers_that_share_a_device_leave_room_for_weights_and_training():
    servers, share = 3, 0.5 / 3
    kept = servers * 3 * state_bytes(80 * GIB, share)  # base, actor and critic of each
    assert 0.2 * 80 * GIB < kept <= 0.25 * 80 * GIB


def test_a_share_of_a_gpu_decides_an_engines_memory(monkeypatch):
    given = {}

    class Properties:
        total_memory = 80 * GIB

    def engine(model, tokenizer, memory_bytes=None, **options):
        given["memory_bytes"] = memory_bytes

    monkeypatch.setattr("nlrl.backbones.engine.Engine", engine)
    monkeypatch.setattr("nlrl.backbones.loading.load_network", lambda name, device, dtype: (None, None))
    monkeypatch.setattr("nlrl.orchestration.models.resolve_device", lambda device: "cuda")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties())
    open_model(ModelConfig(), gpu_share=0.5)
    assert given["memory_bytes"] == state_bytes(80 * GIB, 0.5)
    open_model(ModelConfig(options={"memory_bytes": 5}), gpu_share=0.5)
    assert given["memory_bytes"] == 5
    open_model(ModelConfig())
    assert given["memory_bytes"] is None
