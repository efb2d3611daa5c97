"""Which implementation a device gets, and what is said about it."""

import json
import sys
from functools import partial
from types import ModuleType, SimpleNamespace

import pytest
import torch

from nlrl import kernels
from nlrl.kernels import devices, peers
from nlrl.kernels.costs import cost
from nlrl.kernels.dispatch import Op

GPU = "NVIDIA H100 80GB HBM3"


@pytest.fixture
def table(tmp_path, monkeypatch):
    """Writes a device's table into a folder of its own."""
    monkeypatch.setattr(devices, "FOLDER", tmp_path)
    monkeypatch.delenv("NLRL_KERNELS", raising=False)
    return lambda ops: devices.write(GPU, "torch=0", ops)


def test_every_op_has_providers_and_a_reason():
    found = kernels.providers()
    assert set(found) == set(kernels.ops()) >= {"ssd", "selective_scan", "swiglu"}
    assert all(one.available["torch"] and one.why for one in found.values())
    assert kernels.providers("cpu")["swiglu"].chosen == "torch"
    assert "mamba_ssm" in found["ssd"].available


def test_ours_is_the_default_where_nothing_is_recorded(table):
    pytest.importorskip("triton")
    found = kernels.providers(GPU)["swiglu"]
    assert (found.chosen, found.why) == ("nlrl", "nothing recorded for this device")


def test_the_recorded_provider_is_chosen_on_its_device_only(table):
    pytest.importorskip("triton")
    table({"swiglu": {"provider": "torch"}})
    found = kernels.providers(GPU)
    assert found["swiglu"].chosen == "torch"
    assert "recorded table" in found["swiglu"].why
    assert found["ssd"].chosen == "nlrl"
    assert kernels.providers("NVIDIA H200")["swiglu"].chosen == "nlrl"


def test_calls_without_gradients_may_get_another_provider(table):
    pytest.importorskip("triton")
    table({"diff_attention": {"provider": "nlrl", "forward": "composed"}})
    op, found = kernels.ops()["diff_attention"], kernels.providers(GPU)["diff_attention"]
    assert (found.chosen, found.forward) == ("nlrl", "composed")
    assert "nlrl, forward composed" in str(found)
    assert [op.choice(GPU, learns).provider for learns in (True, False)] == ["nlrl", "composed"]
    table({"diff_attention": {"provider": "composed"}})
    assert op.choice(GPU, learns=False).provider == "composed", "what was the fastest once is forgotten"


def says(what, *args, **named):
    return what


@pytest.mark.parametrize(("wanted", "enabled", "expected"), [(True, True, "a"), (True, False, "b"), (False, True, "b")])
def test_whether_a_call_learns_is_told_by_its_arguments(table, monkeypatch, wanted, enabled, expected):
    """A stand-in for a tensor on a device, as this may run on a machine without one."""
    table({"relu": {"provider": "a", "forward": "b"}})
    ways = {name: peers.Peer("torch", partial(says, name), partial(says, True)) for name in "ab"}
    monkeypatch.setitem(peers.PEERS, "relu", ways)
    monkeypatch.setattr(devices, "current", lambda: GPU)
    op, leaf = Op(torch.relu, torch.relu), torch.ones(2, requires_grad=wanted)
    with torch.set_grad_enabled(enabled):
        assert op(SimpleNamespace(is_cuda=True), leaf) == expected
        assert op(x=SimpleNamespace(is_cuda=True), y=leaf) == expected


def test_a_recorded_provider_that_is_not_installed_is_not_chosen(table, monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setitem(peers.PEERS, "swiglu", {"no_such_package": peers.Peer("no_such_package", max, bool)})
    table({"swiglu": {"provider": "no_such_package"}})
    found = kernels.providers(GPU)["swiglu"]
    assert found.chosen == "nlrl"
    assert "not there now" in found.why
    assert found.available["no_such_package"] is False
    assert "absent: no_such_package" in str(found)


def test_the_switch_forces_the_reference(table, monkeypatch):
    table({"swiglu": {"provider": "nlrl"}})
    monkeypatch.setenv("NLRL_KERNELS", "eager")
    found = kernels.providers(GPU)["swiglu"]
    assert (found.chosen, found.why) == ("torch", "NLRL_KERNELS=eager")
    assert kernels.swiglu.provider(found.chosen) is kernels.swiglu.eager


def test_writing_keeps_other_ops_and_launch_configurations(table):
    file = table({"ssd": {"provider": "nlrl", "launch": {"num_warps": 8}}})
    table({"ssd": {"provider": "torch"}, "swiglu": {"provider": "nlrl"}})
    assert file.name == "nvidia_h100_80gb_hbm3.json"
    assert json.loads(file.read_text())["ops"] == {
        "ssd": {"provider": "torch", "launch": {"num_warps": 8}},
        "swiglu": {"provider": "nlrl"},
    }
    assert devices.launch("ssd", {"num_warps": 4, "num_stages": 2}, GPU) == {"num_warps": 8, "num_stages": 2}
    assert devices.launch("ssd", {"num_warps": 4}, "cpu") == {"num_warps": 4}


@pytest.mark.parametrize("text", ["{", "[]", '{"ops": []}'])
def test_a_table_that_is_none_is_refused_with_its_name(table, text):
    file = devices.file_of("broken")
    file.write_text(text)
    with pytest.raises(ValueError, match=r"broken\.json"):
        devices.read("broken")


def test_recorded_tables_of_the_package_name_known_ops_and_providers():
    for file in devices.FOLDER.glob("*.json"):
        for name, entry in json.loads(file.read_text())["ops"].items():
            named = {entry[role] for role in ("provider", "forward") if role in entry}
            assert named <= set(kernels.ops()[name].available()), file
            assert named or entry["launch"], file


def test_ours_does_what_a_peer_cannot():
    peer = peers.Peer("torch", lambda n: f"peer {n}", lambda n: n < 3)
    both = peer.or_else(lambda n: f"ours {n}")
    assert [both(2), both(5)] == ["peer 2", "ours 5"]


def test_an_op_without_a_kernel_gets_torch(table):
    op = Op(torch.relu, torch.relu)
    assert op.choice(GPU).provider == "torch"
    with pytest.raises(KeyError, match="relu"):
        op.provider("nlrl")


def fake(monkeypatch, name: str, **functions):
    """A package that is not installed here."""
    parts = name.split(".")
    for depth in range(1, len(parts) + 1):
        path = ".".join(parts[:depth])
        monkeypatch.setitem(sys.modules, path, sys.modules.get(path) or ModuleType(path))
    sys.modules[name].__dict__.update(functions)


def conv_by_documents(x, weight, bias, seq_idx=None):
    """As `causal_conv1d_fn` is documented: channels before time, taps of other documents left out."""
    y = torch.zeros_like(x) + bias[:, None]
    for t in range(x.shape[2]):
        for back in range(min(weight.shape[1], t + 1)):
            same = (seq_idx[:, t] == seq_idx[:, t - back])[:, None]
            y[:, :, t] += torch.where(same, weight[:, -1 - back] * x[:, :, t - back], 0)
    return y


def test_the_convolution_of_another_package_takes_our_arguments(monkeypatch):
    fake(monkeypatch, "causal_conv1d", causal_conv1d_fn=conv_by_documents)
    x, weight, bias = torch.randn(2, 9, 8), torch.randn(8, 4), torch.randn(8)
    positions = torch.tensor([[0, 1, 2, 3, 4, 0, 1, -1, -1], [4, 5, 6, 0, 1, 2, 3, 4, 5]])
    given = (x, weight, bias, positions)
    peer = peers.PEERS["causal_conv1d"]["causal_conv1d"]
    assert peer.fits(*given)
    assert not peer.fits(*given, initial=torch.zeros(3, 8))
    (y, window), (exact, expected) = peer.call(*given), kernels.causal_conv1d(*given)
    real = positions >= 0
    torch.testing.assert_close(y[real], exact[real])
    torch.testing.assert_close(window, expected)


def test_the_scan_of_another_package_takes_our_arguments(monkeypatch):
    """As documented, a change of seq_idx forgets the state; the first index is that of the given state, 0."""

    def scan(x, dt, A, B, C, chunk_size, D, initial_states, seq_idx, return_final_states):
        state, before, y = initial_states, torch.zeros_like(seq_idx[:, 0]), []
        for t in range(x.shape[1]):
            state = torch.where((seq_idx[:, t] == before)[:, None, None, None], state, 0)
            decay = (dt[:, t] * A).exp()[..., None, None]
            state = decay * state + (dt[:, t, :, None] * x[:, t])[..., None] * B[:, t, :1, None]
            before = seq_idx[:, t]
            y.append((state @ C[:, t, :1, :, None])[..., 0] + D[:, None] * x[:, t])
        return torch.stack(y, 1), state

    fake(monkeypatch, "mamba_ssm.ops.triton.ssd_combined", mamba_chunk_scan_combined=scan)
    positions = torch.tensor([[0, 1, 2, 0, 1, -1], [4, 5, 6, 7, 0, 1]])
    x, dt, A = torch.randn(2, 6, 2, 4), torch.rand(2, 6, 2), -torch.rand(2)
    B, C, state, D = torch.randn(2, 6, 1, 3), torch.randn(2, 6, 1, 3), torch.randn(2, 2, 4, 3), torch.randn(2)
    given = (x, dt, A, B, C, positions, state, D)
    peer = peers.PEERS["ssd"]["mamba_ssm"]
    assert peer.fits(*given)
    assert not peer.fits(*given, overwrite=True)
    (y, after), (exact, expected) = peer.call(*given), kernels.ssd(*given)
    real = positions >= 0
    torch.testing.assert_close(y[real], exact[real])
    torch.testing.assert_close(after, expected)


def test_costs_are_those_of_the_formulas():
    n, d = 1000, 64
    assert cost("unit_lerp", "forward", 2, tokens=n, width=d).bytes == 6 * n * d
    assert cost("unit_lerp", "backward", 2, tokens=n, width=d).bytes == 12 * n * d
    assert cost("unit_lerp", "both", 2, tokens=n, width=d) == (18 * n * d, 29 * n * d)
    assert cost("swiglu", "backward", 2, tokens=n, channels=d).bytes == 10 * n * d
    assert cost("adam_normalise", "forward", 4, rows=n, columns=d, rounded=1).bytes == 30 * n * d
    attention = dict(heads=8, kv_heads=2, v_heads=2, key_dim=64, value_dim=64)
    assert cost("paged_attention", "forward", 2, rows=3, context=n, **attention) == (
        3 * n * 2 * 128 * 2,
        3 * n * 8 * 2 * 128,
    )
    ring = dict(heads=8, kv_heads=2, key_dim=64, value_dim=128)
    read = (3 * (n + 1) + 16) * 2 * 192
    assert cost("ring_attention", "forward", 2, rows=3, slots=n, prefix=16, **ring).bytes == 2 * read
    extend = dict(heads=8, kv_heads=2, v_heads=2, key_dim=64, value_dim=128)
    read = 3 * 10 * 8 * 192 + (3 * (n + 10) + 16) * 2 * 192
    found = cost("extend_attention", "forward", 2, batch=3, time=10, old=n, prefix=16, **extend)
    assert found == (2 * read, 3 * (10 * (16 + n) + 55) * 8 * 385)
    ring = cost("extend_attention", "forward", 2, batch=1, time=4, old=n, reach=5, slots=5, **extend)
    assert ring.flops == (6 + 6 + 6 + 6) * 8 * 385
    assert cost("dual_norm", "both", 2, rows=n, width=d).bytes == 16 * n * d
    scan = dict(batch=1, time=n, channels=d, states=16)
    assert cost("selective_scan", "forward", 2, **scan) == (2 * (3 * n * d + 32 * n) + 64 * d, n * d * 115)
    step = dict(batch=4, time=1, heads=2, head_dim=64, groups=1, states=128)
    assert cost("ssd", "forward", 2, **step).bytes > 2 * 4 * 4 * 2 * 64 * 128, "the state is read and written"


def test_the_chosen_function_is_the_provider(table, monkeypatch):
    fast = SimpleNamespace(twice=lambda x: 2 * x)
    monkeypatch.setitem(sys.modules, "fast_kernels", fast)
    op = Op(torch.relu, torch.relu, triton="fast_kernels:twice")
    assert op.provider("nlrl") is fast.twice
    assert op.provider("torch") is torch.relu
