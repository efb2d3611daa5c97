"""Launches of attention: how few programs serve texts of all lengths."""

from importlib import import_module

import pytest

pytest.importorskip("triton")
from triton.runtime.jit import JITFunction

from nlrl.kernels.attention_launch import Tiles, line_of

LAUNCHED = {
    "forward", "prepare", "key_gradients", "query_gradients", "prefix_gradients", "states", "outputs",
    "shared_gradients", "gradients",
}  # fmt: skip


@pytest.mark.parametrize(
    "tiles", [Tiles(128, 64, 8, 3), Tiles(32, 128, 8, 2), Tiles(64, 64, 4, 3), Tiles(16, 32, 4, 1)]
)
def test_texts_of_all_lengths_need_three_tiles_at_most(tiles):
    found = {time: tiles.within(time) for time in range(1, 3000)}
    assert len(set(found.values())) <= 3
    assert found[1][:2] == (16, 16)
    assert all(found[time] == tiles for time in range(65, 3000))
    # No more than the text, rounded up to what is multiplied at once.
    assert all(max(each[:2]) <= (16 if time <= 16 else 64) for time, each in found.items() if time <= 64)


def test_numbers_of_queries_lie_in_whole_vectors():
    assert [line_of(time) for time in (1, 16, 17, 1000)] == [16, 16, 32, 1008]


@pytest.mark.parametrize("op", ["diff_attention", "diff_attention_v2", "prefix_attention", "ssd"])
def test_no_program_is_compiled_anew_for_another_length(op):
    programs = vars(import_module(f"nlrl.kernels.{op}.triton_programs"))
    launched = {name: each for name, each in programs.items() if isinstance(each, JITFunction) and LAUNCHED & {name}}
    varying = {
        (name, param.name)
        for name, each in launched.items()
        for param in each.params
        if param.name in ("time", "rows", "chunks", "parts") and not param.do_not_specialize
    }
    # Without the hint its loop over heads reads positions one by one and spills more.
    assert varying == ({("shared_gradients", "time")} if op == "ssd" else set())
    assert len(launched) >= 4
