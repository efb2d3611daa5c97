"""Launches of attention: how few programs serve texts of all lengths."""

import pytest

pytest.importorskip("triton")
from nlrl.kernels.attention_launch import Tiles, line_of


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
