"""`nlrl bench kernels`: what is right is timed, what is wrong is reported, and lines come out as they should. How fast
anything is, is not tested."""

import csv
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from nlrl import kernels
from nlrl.benchmarks.kernels import attention_peers, cli, compare, measure, report, table
from nlrl.benchmarks.kernels import peers as timed_peers
from nlrl.benchmarks.kernels.cases import CASES, Draw
from nlrl.benchmarks.kernels.clock import Once, Rates, Times, sets_wanted
from nlrl.benchmarks.kernels.compare import check, copies, results
from nlrl.benchmarks.kernels.measure import Measured, Provider
from nlrl.benchmarks.kernels.peers import PEERS_TIMED
from nlrl.benchmarks.kernels.shapes import CHECKS, SHAPES, TARGETS, Target, Timed
from nlrl.kernels.costs import Cost, cost
from nlrl.kernels.dispatch import Op

RATES = Rates(copy=3e12, matmul=7e14)


class FakeClock:
    """Calls once; the nth thing timed takes n microseconds."""

    def __init__(self):
        self.timed = 0

    def queued(self, call):
        call()
        self.timed += 1
        return Times(self.timed - 0.5, self.timed, self.timed + 0.5)

    def replayed(self, calls):
        for call in calls:
            call()
        return self.queued(calls[0])

    def rates(self):
        return RATES


def line(provider="nlrl", p50=10.0, mode="forward", bytes_=24e6, graph=False, tokens=8):
    shape = {"tokens": tokens}
    return Measured("swiglu", provider, shape, "bfloat16", mode, Times(p50, p50, p50), Cost(bytes_, 7e9), graph)


def test_every_entry_is_whole():
    assert set(CASES) <= set(kernels.ops())
    assert set(CASES) == set(SHAPES) == set(CHECKS) == set(TARGETS)
    for name, sizes in SHAPES.items():
        assert set(sizes) == {"small", "paper"}
        for one in (*sizes["small"], *sizes["paper"]):
            found = [cost(name, mode, getattr(torch, one.dtype).itemsize, **one.shape) for mode in one.modes]
            assert all(each.bytes > 0 and each.flops > 0 for each in found)
            assert CASES[name].leaves or one.modes == ("forward",)


def test_every_target_names_a_provider_that_exists_and_every_peer_has_a_check():
    for name, targets in TARGETS.items():
        known = {"copy", "torch", "torch.compile", *PEERS_TIMED.get(name, {})}
        assert all(set(target.of.split(",")) <= known for target in targets), name
    for name, peers in PEERS_TIMED.items():
        for provider, peer in peers.items():
            assert any(map(peer.fits, CHECKS[name])), f"{provider} could not be checked"


@pytest.mark.parametrize("name", sorted(CASES))
def test_eager_implementations_are_right_at_every_check(name):
    dtypes = [torch.float32] if name == "adam_normalise" else [torch.float32, torch.bfloat16]
    op = kernels.ops()[name]
    verdict = measure.checked(op, CASES[name], Provider("torch", op.eager), CHECKS[name], dtypes, "cpu")
    assert verdict.right, verdict.worst


def wrong_op(monkeypatch, function) -> Op:
    """The gated activation with another function in place of its kernel."""
    monkeypatch.setitem(sys.modules, "made_up_kernels", SimpleNamespace(swiglu=function))
    return Op(kernels.swiglu.reference, kernels.swiglu.eager, triton="made_up_kernels:swiglu")


class WrongGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return kernels.swiglu.reference(x)

    @staticmethod
    def backward(ctx, *dy):
        return 1.02 * torch.cat((dy[0], dy[0]), -1)


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (lambda up_gate: 1.05 * kernels.swiglu.reference(up_gate), ": error"),
        (lambda up_gate: torch.full_like(up_gate.chunk(2, -1)[0], torch.nan), "not finite"),
        (lambda up_gate: WrongGradient.apply(up_gate), "dup_gate: error"),
        (lambda up_gate: 1 / 0, "ZeroDivisionError"),
    ],
    ids=["value", "nan", "gradient", "exception"],
)
def test_a_wrong_kernel_is_reported_and_not_timed(function, why, monkeypatch, capsys):
    pytest.importorskip("triton")
    op, case = wrong_op(monkeypatch, function), CASES["swiglu"]
    providers = [Provider("nlrl", op.provider("nlrl"), 1.5), Provider("torch", op.eager)]
    clock, timed = FakeClock(), [Timed({"tokens": 4, "channels": 8})]
    found = measure.measure(op, case, timed, CHECKS["swiglu"], providers, clock, "cpu")
    assert "WRONG, not timed" in found.left_out["nlrl"]
    assert why in found.left_out["nlrl"]
    assert {one.provider for one in found.measured} == {"torch"}
    assert clock.timed == 3, "forward, backward, both, of the right one alone"
    table.show(found, TARGETS["swiglu"], RATES)
    assert "nlrl: WRONG" in capsys.readouterr().out


def test_a_kernel_that_is_wrong_at_a_timed_size_alone_is_not_timed(monkeypatch):
    def overflows(up_gate):
        y = kernels.swiglu.reference(up_gate)
        return y if len(y) < 100 else y.index_fill(0, torch.arange(90, len(y)), 0)

    op = wrong_op(monkeypatch, overflows)
    timed = [Timed({"tokens": tokens, "channels": 8}, ("forward",)) for tokens in (50, 200)]
    providers = [Provider("nlrl", overflows, 1.5)]
    found = measure.measure(op, CASES["swiglu"], timed, CHECKS["swiglu"], providers, FakeClock(), "cpu")
    assert [one.shape["tokens"] for one in found.measured] == [50]
    assert "WRONG at tokens=200" in found.left_out["nlrl"]


@pytest.mark.parametrize("name", ["ssd", "causal_conv1d", "sample", "adam_normalise"])
def test_every_mode_and_the_replay_run(name):
    """Small sizes, on the CPU, with a clock that does not time."""
    op, shape = kernels.ops()[name], next(shape for shape in CHECKS[name] if not shape.get("documents"))
    modes = ("forward", "backward", "both") if CASES[name].leaves else ("forward",)
    dtype = "float32"
    timed = [Timed(shape, modes, dtype)]
    timed += [Timed(shape, ("forward",), dtype, graph=True) for shape in CHECKS[name] if shape.get("time", 1) == 1]
    found = measure.measure(op, CASES[name], timed, CHECKS[name], [Provider("torch", op.eager)], FakeClock(), "cpu")
    assert not found.left_out
    assert [one.mode for one in found.measured] == [mode for one in timed for mode in one.modes]


def test_peers_of_torch_itself_are_right(monkeypatch):
    monkeypatch.setattr(attention_peers, "_compiled", lambda function: function)
    for name, provider in (
        ("adam_normalise", "fused AdamW + norm"),
        ("paged_attention", "sdpa, dense"),
        ("diff_attention", "2 x sdpa"),
    ):
        peer, op = PEERS_TIMED[name][provider], kernels.ops()[name]
        shapes = [shape for shape in CHECKS[name] if peer.fits(shape)]
        for shape in shapes:
            verdict = check(CASES[name], op.reference, peer.call, shape, torch.float32, "cpu", 16.0, peer)
            assert verdict.right, f"{provider}: {verdict.worst}"


def test_flexible_attention_sees_the_prefix_and_the_window(monkeypatch):
    """Forward alone: it has no gradients on a CPU."""
    monkeypatch.setattr(attention_peers, "_compiled", lambda function: function)
    peer, case = PEERS_TIMED["prefix_attention"]["flex"], CASES["prefix_attention"]
    for shape in filter(peer.fits, CHECKS["prefix_attention"]):
        inputs = case.make(Draw(torch.float32, "cpu"), **shape)
        found = results(case, peer.call, inputs, False, peer)
        torch.testing.assert_close(found, results(case, kernels.prefix_attention, inputs, False), rtol=1e-4, atol=1e-4)


def test_gradients_of_an_argument_in_two_parts_are_joined():
    peer = PEERS_TIMED["swiglu"]["liger_kernel"]
    inputs = CASES["swiglu"].make(Draw(torch.float64, "cpu"), tokens=3, channels=5)
    found = results(CASES["swiglu"], lambda up, gate: torch.nn.functional.silu(gate) * up, inputs, True, peer)
    exact = results(CASES["swiglu"], kernels.swiglu, inputs)
    torch.testing.assert_close(found, exact)


def test_the_memory_order_of_a_peer_survives_copies():
    inputs = timed_peers.ordered({"x": torch.randn(2, 5, 3), "y": None, "n": 4}, x=(0, 2, 1))
    assert inputs["x"].stride() == (15, 1, 5)
    assert copies(inputs, ["x"])["x"].stride() == (15, 1, 5)


def test_scans_of_a_peer_are_called_with_time_last(monkeypatch):
    def scan(u, delta, A, B, C, D, return_last_state):
        assert u.is_contiguous()
        given = (part.transpose(1, 2) for part in (u, delta))
        positions = torch.arange(u.shape[2]).expand(len(u), -1)
        y, state = kernels.selective_scan(*given, A, B.transpose(1, 2), C.transpose(1, 2), D, positions)
        return y.transpose(1, 2), state

    module = SimpleNamespace(selective_scan_fn=scan)
    for name in ("mamba_ssm", "mamba_ssm.ops", "mamba_ssm.ops.selective_scan_interface"):
        monkeypatch.setitem(sys.modules, name, module)
    peer, op, case = PEERS_TIMED["selective_scan"]["mamba_ssm"], kernels.selective_scan, CASES["selective_scan"]
    (shape,) = filter(peer.fits, CHECKS["selective_scan"])
    verdict = check(case, op.reference, peer.call, shape, torch.float32, "cpu", 16.0, peer)
    assert verdict.right, verdict.worst


def one_token(state, x, dt, A, B, C, D=None, z=None, dt_bias=None, dt_softplus=False):
    """As `selective_state_update` is documented, for heads; the state is changed in place."""
    assert [part.stride(-1) for part in (A, dt, dt_bias)] == [0, 0, 0]
    step = dt + dt_bias
    B, C = (part.repeat_interleave(x.shape[1] // part.shape[1], 1) for part in (B, C))
    state.mul_((step[..., None] * A).exp()).add_((step * x)[..., None] * B[:, :, None])
    return (state * C[:, :, None]).sum(-1) + D * x


def test_a_decoding_step_of_a_peer_takes_our_arguments(monkeypatch):
    module = SimpleNamespace(selective_state_update=one_token)
    for name in ("mamba_ssm", "mamba_ssm.ops", "mamba_ssm.ops.triton", "mamba_ssm.ops.triton.selective_state_update"):
        monkeypatch.setitem(sys.modules, name, module)
    peer, op = PEERS_TIMED["ssd"]["mamba_ssm update"], kernels.ssd
    (shape,) = filter(peer.fits, CHECKS["ssd"])
    verdict = check(CASES["ssd"], op.reference, peer.call, shape, torch.float32, "cpu", 16.0, peer)
    assert verdict.right, verdict.worst


def test_absent_providers_are_named():
    names = {"no_such_package": "no_such_package", "here": "torch"}
    peers = {name: timed_peers.BenchPeer(package, max) for name, package in names.items()}
    there, absent = measure.providers_of(Op(torch.relu, torch.relu), CASES["swiglu"], peers, with_peers=True)
    assert [provider.name for provider in there] == ["torch", "torch.compile", "here"]
    assert absent == ["nlrl", "no_such_package"]
    there, absent = measure.providers_of(Op(torch.relu, torch.relu), CASES["swiglu"], peers, with_peers=False)
    assert [provider.name for provider in there] == ["torch", "torch.compile"]


def test_targets_are_met_or_missed():
    lines = [line(p50=10), line("torch.compile", 20), line("liger_kernel", 12)]
    targets = [
        Target(0.85, "copy", ("forward",)),
        Target(0.75, "copy", ("forward",)),
        Target(1.5, "torch.compile"),
        Target(1.5, "liger_kernel,fla,torch.compile"),
        Target(2.0, "fla"),
        Target(0.1, "copy", ("backward",)),
        Target(0.1, "copy", graph=True),
    ]
    found = table.outcomes(lines, targets, RATES)
    assert [outcome.met for outcome in found] == [False, True, True, False]
    assert found[0].text == "80% of copy, target >= 85%"
    assert found[3].text == "1.20x liger_kernel, target >= 1.50x"


def test_the_best_peer_is_another_package_where_there_is_one():
    lines = [line(), line("torch.compile", 5), line("fla", 12), line("yardstick", 1)]
    assert table.best_peer(lines, ["yardstick"]).provider == "fla"
    assert table.best_peer(lines[:2]).provider == "torch.compile"
    assert table.best_peer(lines[:1]) is None


def test_lines_are_appended_under_one_header(tmp_path):
    file = tmp_path / "kernels.csv"
    table.append(file, [line()], "a GPU, with a comma")
    table.append(file, [line("fla")], "a GPU")
    assert file.read_text().splitlines()[0] == "kernel,provider,shape,dtype,mode,p20,p50,p80,gpu,versions"
    with file.open() as rows:
        found = list(csv.DictReader(rows))
    assert [row["provider"] for row in found] == ["nlrl", "fla"]
    assert (found[0]["shape"], found[0]["p50"], found[0]["gpu"]) == ("tokens=8", "10.000", "a GPU, with a comma")
    assert f"torch={torch.__version__.partition('+')[0]}" in found[0]["versions"]


def test_a_file_with_another_header_is_refused(tmp_path):
    file = tmp_path / "kernels.csv"
    file.write_text("kernel,provider\n")
    with pytest.raises(ValueError, match="begins with"):
        table.append(file, [line()], "a GPU")
    assert file.read_text() == "kernel,provider\n"


def test_the_fastest_server_is_recorded():
    lines = [line(p50=10), line("torch", 30), line("fla", 1), line("mamba_ssm", 9)]
    lines += [line(p50=10, tokens=9), line("torch", 30, tokens=9)]
    entry = table.fastest(lines, ["nlrl", "torch", "mamba_ssm"])
    assert entry == {"provider": "mamba_ssm", "relative": {"nlrl": 1.0, "torch": 3.0, "mamba_ssm": 0.949}}
    assert table.fastest(lines[1:2], ["nlrl", "torch"])["provider"] == "torch", "ours was wrong, so it has no line"
    assert table.fastest([line("fla")], ["nlrl", "torch"]) is None


def test_a_call_in_training_counts_as_a_whole():
    lines = [line(p50=10), line("torch", 5), line(p50=30, mode="both"), line("torch", 15, mode="both")]
    assert table.fastest(lines, ["nlrl", "torch"]) == {"provider": "torch", "relative": {"nlrl": 1.0, "torch": 0.5}}


def test_calls_without_gradients_may_have_another_fastest():
    lines = [line(p50=1), line("torch", 5), line(p50=30, mode="both"), line("torch", 15, mode="both")]
    entry = table.fastest(lines, ["nlrl", "torch"])
    assert entry is not None
    assert (entry["provider"], entry["forward"]) == ("torch", "nlrl")


def test_an_op_that_ends_the_context_leaves_the_others_to_a_new_process(monkeypatch, tmp_path, capsys):
    gone, commands = [], []

    def measured(name, *rest):
        if name == "sample":
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
        gone.append(name)
        return True

    monkeypatch.setattr(cli, "_measure_op", measured)
    monkeypatch.setattr(
        cli.subprocess, "run", lambda command, check: commands.append(command) or SimpleNamespace(returncode=0)
    )
    args = cli._parse(["--peers", "--csv", str(tmp_path / "x.csv")])
    ops = {name: kernels.ops()[name] for name in ("rms_norm", "sample", "swiglu", "unit_lerp")}
    assert cli.measure_all(ops, args, Once()) == 1
    assert gone == ["rms_norm"]
    assert [command[command.index("--op") + 1 :] for command in commands] == [["swiglu", "unit_lerp"]]
    assert "--peers" in commands[0]
    assert "sample: CUDA error: an illegal memory access" in capsys.readouterr().out


def test_targets_may_be_met_by_pytorchs_attention_between_passes_of_ours():
    lines = [line(p50=10), line("composed", 5), line("torch", 12), line("torch.compile", 9)]
    rates = Rates(1e12, 1e12)
    (found,) = table.outcomes(lines, [Target(1.3, "torch.compile")], rates)
    assert found == ("1.80x torch.compile (composed), target >= 1.30x", True)
    best = table.best_peer(lines)
    assert best is not None
    assert best.provider == "torch.compile"


def test_targets_may_be_of_some_sizes_only():
    lines, asked = [line(p50=10), line("torch", 12)], Target(1.1, "torch", only=(("tokens", 8),))
    assert table.outcomes(lines, [asked], RATES) == [("1.20x torch, target >= 1.10x", True)]
    assert not table.outcomes(lines, [asked._replace(only=(("tokens", 9),))], RATES)


def test_the_file_is_read_as_a_table_of_the_newest(tmp_path, capsys):
    file = tmp_path / "kernels.csv"
    swiglu = {"tokens": 8192, "channels": 512}

    def measured(provider, p50):
        return Measured("swiglu", provider, swiglu, "bfloat16", "forward", Times(p50, p50, p50), Cost(0, 0), False)

    moved = cost("swiglu", "forward", 2, **swiglu).bytes
    table.append(file, report.rate_lines(Rates(moved / 10 * 1e6, 5e14)), "a GPU")
    table.append(file, [measured("nlrl", 40), measured("liger_kernel", 1)], "a GPU")
    table.append(file, [measured("nlrl", 20), measured("torch.compile", 30), measured("liger_kernel", 25)], "a GPU")
    (group,) = report.groups(file)
    assert [one.times.p50 for one in group.lines] == [20, 30, 25]
    assert group.lines[0].bytes_per_second / group.rates.copy == pytest.approx(0.5, rel=1e-4)
    assert group.rates.matmul == pytest.approx(5e14, rel=1e-3)
    assert cli.main(["--read", "--csv", str(file)]) == 0
    out = capsys.readouterr().out
    assert "| swiglu | tokens=8192 channels=512 | forward | 20.0 | liger_kernel 25.0 | 1.25 |" in out
    assert "1.25x liger_kernel, target >= 0.95x: met" in out


def test_what_is_committed_can_be_read(capsys):
    assert cli.main(["--read"]) == 0
    assert "| mamba2_step | rows=64" in capsys.readouterr().out


def test_what_takes_too_long_to_compile_is_named_and_left_out(monkeypatch, capsys):
    def run(command, timeout, **named):
        provider = command[command.index("--provider") + 1]
        if provider == "torch.compile":
            raise subprocess.TimeoutExpired(command, timeout)
        return SimpleNamespace(returncode=int(provider == "nlrl"))

    monkeypatch.setattr(cli.subprocess, "run", run)
    monkeypatch.setattr(Op, "available", lambda self: {"nlrl": True, "torch": True})
    args = cli._parse(["--op", "swiglu"])
    args.without += cli.compile_ahead({"swiglu": kernels.ops()["swiglu"]}, SimpleNamespace(**vars(args) | {"ahead": 2}))
    assert args.without == ["swiglu/torch.compile"]
    assert [one.name for one in cli._providers("swiglu", kernels.ops()["swiglu"], args)[0]] == ["nlrl", "torch"]
    out = capsys.readouterr().out
    assert "failed: swiglu/nlrl\n" in out
    assert "swiglu/torch.compile" in out.splitlines()[-1]


def test_inputs_that_take_turns_fill_the_cache():
    assert sets_wanted(bytes_of_call=10e6, cache=50_000_000) == 15
    assert sets_wanted(1e9, 50_000_000) == 3
    assert sets_wanted(1, 50_000_000) == 64


def test_what_compiles_ahead_calls_everything_and_times_nothing(monkeypatch):
    calls, eager = [], kernels.swiglu.eager

    def counted(up_gate):
        calls.append(len(up_gate))
        return eager(up_gate)

    op = wrong_op(monkeypatch, counted)
    timed = [Timed({"tokens": tokens, "channels": 8}) for tokens in (5, 6)]
    checks = [{"tokens": 3, "channels": 8}]
    found = measure.measure(op, CASES["swiglu"], timed, checks, [Provider("nlrl", counted)], Once(), "cpu")
    assert {*calls} == {3, 5, 6}
    assert [one.times for one in found.measured] == [Times(0, 0, 0)] * 6


def test_a_copy_of_the_weights_decides_nothing_for_who_is_right():
    found = compare.agrees({"y": torch.ones(3)}, {"y": torch.ones(3), "state": torch.ones(2)}, torch.float32)
    assert found.right
    assert not compare.agrees({"y": torch.full((3,), torch.nan)}, {"y": torch.ones(3)}, torch.float32).right


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_without_a_gpu_nothing_is_timed(tmp_path, capsys):
    file = tmp_path / "kernels.csv"
    assert cli.main(["--csv", str(file)]) == 1
    assert "no GPU" in capsys.readouterr().out
    assert not file.exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_check_runs_our_kernels_in_the_interpreter():
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "nlrl.benchmarks.kernels", "--check", "--op", "swiglu", "unit_lerp"]
    done = subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert [text.split()[:3] for text in done.stdout.splitlines()[1:]] == [
        [op, provider, "right:"] for op in ("swiglu", "unit_lerp") for provider in ("nlrl", "torch")
    ]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_run_on_the_device_prints_and_writes(tmp_path, capsys):
    file = tmp_path / "kernels.csv"
    assert cli.main(["--op", "swiglu", "sample", "--shapes", "small", "--ahead", "2", "--csv", str(file)]) == 0
    rows = file.read_text().splitlines()[1:]
    assert {row.split(",")[1] for row in rows} >= {"nlrl", "torch", "torch.compile"}
    assert "of copy" in capsys.readouterr().out
