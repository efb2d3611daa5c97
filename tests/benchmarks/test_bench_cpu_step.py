"""`nlrl bench cpu_step` prints PyTorch's step and the native one beside each other."""

import torch

from nlrl.benchmarks import cpu_step


def test_every_batch_gets_a_line_with_both_rates(capsys):
    threads = torch.get_num_threads()
    few = ["--models", "4x256", "--batches", "1", "2", "--context", "8", "--rounds", "1", "--repeats", "1"]
    try:
        assert cpu_step.main([*few, "--threads", "1", "--no-compile"]) == 0
    finally:
        torch.set_num_threads(threads)
    lines = [line for line in capsys.readouterr().out.splitlines() if "batch" in line]
    assert len(lines) == 2
    assert all("eager" in line and "native" in line for line in lines)
