"""Examples on disk: what is written is what is read, once, however many read it."""

import numpy as np
import pytest

from nlrl.backbones.packing import TokenExample
from nlrl.backbones.token_file import read_examples, write_examples, write_part
from nlrl.errors import NLRLError

EXAMPLES = [TokenExample(tuple(range(i)), tuple(range(100, 103 + i % 4))) for i in range(1, 12)]


@pytest.fixture
def path(tmp_path):
    parts = [tmp_path / "a", tmp_path / "b"]
    write_part(parts[0], EXAMPLES[:7])
    write_part(parts[1], EXAMPLES[7:])
    assert write_examples(tmp_path / "corpus.npz", parts) == len(EXAMPLES)
    return tmp_path / "corpus.npz"


def test_one_reader_gets_everything_in_order(path):
    assert list(read_examples(path)) == EXAMPLES


def test_several_readers_share_the_examples(path):
    shares = [list(read_examples(path, worker, 3)) for worker in range(3)]
    assert [share[0] for share in shares] == EXAMPLES[:3]
    assert {e for share in shares for e in share} == set(EXAMPLES)
    assert sum(map(len, shares)) == len(EXAMPLES)


@pytest.mark.parametrize("wrong", [(1 << 16,), tuple(range(1 << 16))])
def test_what_does_not_fit_is_refused(tmp_path, wrong):
    with pytest.raises(NLRLError, match="below 65,536"):
        write_part(tmp_path / "part", [TokenExample(wrong, (1,))])


def test_a_missing_or_foreign_file_is_named(tmp_path):
    with pytest.raises(NLRLError, match=r"corpus\.npz does not exist"):
        next(read_examples(tmp_path / "corpus.npz"))
    (tmp_path / "torn").write_bytes(b"PK\x03\x04 torn")
    np.savez(tmp_path / "foreign.npz", other=np.zeros(3))
    for name in ("torn", "foreign.npz"):
        with pytest.raises(NLRLError, match=f"{name} is not a corpus file"):
            next(read_examples(tmp_path / name))
