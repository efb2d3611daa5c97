"""The checker of pointers finds what would be a wrong number, or the end of a process, on a device."""

import torch


def check() -> None:
    """Run in a process of its own: the interpreter must be chosen before Triton is imported."""
    import bounds
    import triton
    import triton.language as tl

    @triton.jit
    def copy(x_ptr, y_ptr, size, stride, block: tl.constexpr):
        i = tl.program_id(0) * block + tl.arange(0, block)
        tl.store(y_ptr + i, tl.load(x_ptr + i * stride, mask=i < size, other=0.0), mask=i < size)

    def refused(*args, sampled: int = 0) -> bool:
        try:
            with bounds.checked(sampled):
                copy[(triton.cdiv(args[2], 4),)](*args, block=4)  # pyright: ignore[reportArgumentType]
        except bounds.OutOfBounds:
            return True
        return False

    x, y = torch.randn(40), torch.zeros(11)
    assert not refused(x[:11], y, 11, 1)
    assert torch.equal(x[:11], y)
    assert refused(x[:10], y, 11, 1)  # a view that ends before the memory behind it does
    assert refused(x, y[:10], 11, 1)
    assert refused(x[:1].expand(11), y, 11, 1)  # elements that share memory
    assert not refused(x[:1].expand(11), y, 11, 0)
    assert refused(x[8:19], y, 11, -1)
    large, end = torch.empty(1 << 31, dtype=torch.int8), (1 << 31) + 1
    assert not refused(large, large, 1 << 31, 1, sampled=2)
    assert refused(large, large, end, 1, sampled=2)
    assert refused(large, large, 1 << 30, 4, sampled=3)  # i * stride leaves 32 bits


def test_it_refuses_what_lies_outside_and_nothing_else(interpreted):
    interpreted(__file__)


if __name__ == "__main__":
    check()
