from __future__ import annotations

from urllib.parse import parse_qsl

import pytest

from nlrl.ui.links import Place, params_of, place_of, url_of

EVIL = "<script>&run=../../etc?x=#é "


@pytest.mark.parametrize(
    "place", [Place(), Place("runs/a", "003/rollout", "00ab", 7), Place(EVIL, EVIL, EVIL), Place(".", ply=3)]
)
def test_a_place_comes_back_from_its_parameters_and_from_its_address(place):
    assert place_of(params_of(place)) == place
    page, _, query = url_of(place, "replay").partition("?")
    assert page == "replay"
    assert place_of(dict(parse_qsl(query))) == place


def test_what_is_empty_is_left_out_of_the_address():
    assert params_of(Place("a", game="k")) == {"run": "a", "game": "k"}


@pytest.mark.parametrize("ply", ["", "-1", "x", "1.5", "1e9", "٣", "9" * 50])
def test_a_ply_that_is_no_number_is_the_start(ply):
    assert place_of({"run": "a", "ply": ply}) == Place("a")
