"""Which neighbouring tokens a convolution reaches and which products each adds, for kernels over visible tokens.

A token is a block of positions. Along axes with several positions a token, the products of taps and positions are known
when a kernel is compiled, and unrolled. Along axes with one position a token, every tap leads to another token, and the
taps are a loop.
"""

import itertools
import math

from .backend import tl, triton


def walked_taps(block: tuple[int, ...], kernel: tuple[int, ...]) -> int:
    """Number of taps along the axes with one position a token. They are a loop; the other taps are unrolled."""
    return math.prod([k for b, k in zip(block, kernel) if b == 1])  # torch.compile accepts no generator here


@triton.constexpr_function
def neighbour_products(block, kernel, by_tap):
    """What each neighbouring token adds, for one tap along each axis of one position a token.

    Returns for each neighbour (its offset in tokens, taps, inputs, pairs): the taps and positions in use, by number in
    what is unrolled of the kernel and in the block, and for each output in the block the pairs (place in taps, place in
    inputs) of which it takes the product. by_tap: taps and outputs change places.
    """
    axes = []
    for b, k in zip(block, kernel):
        reached = [(t, d, t + d - k // 2) for t in range(b) for d in range(k)]
        axes.append([(0, 0, 0)] if b == 1 else reached)  # (output, tap, input counted from the token's first position)
    n_sums = math.prod([k for b, k in zip(block, kernel) if b > 1]) if by_tap else math.prod(block)
    neighbours = {}
    for product in itertools.product(*axes):
        output, tap, inside = 0, 0, 0
        for axis, b in enumerate(block):
            t, d, s = product[axis]
            output, tap, inside = output * b + t, tap * (kernel[axis] if b > 1 else 1) + d, inside * b + s % b
        offset = tuple([reached[2] // b for reached, b in zip(product, block)])
        neighbours.setdefault(offset, []).append((tap, output, inside) if by_tap else (output, tap, inside))
    table = {}  # no list, which Triton would copy whenever it looks something up
    for offset, terms in neighbours.items():
        factors, inputs = sorted({f for _, f, _ in terms}), sorted({i for _, _, i in terms})
        pairs = [[] for _ in range(n_sums)]
        for total, factor, inside in terms:
            pairs[total].append((factors.index(factor), inputs.index(inside)))
        table[len(table)] = offset, factors, inputs, pairs
    return table


@triton.constexpr_function
def entry(table, *place):
    """table[i][j]...: what Triton reads of nested tuples and lists by itself differs between its versions."""
    for i in place:
        table = table[i]
    return table


@triton.constexpr_function
def length(table, *place):
    """Length of table[i][j]..."""
    for i in place:
        table = table[i]
    return len(table)


@triton.jit
def coordinates(token, grid_shape):
    """Of a token on the grid, one for each axis."""
    at = ()
    for axis in tl.static_range(len(grid_shape) - 1, -1, -1):
        at = (token % grid_shape[axis],) + at  # noqa: RUF005 (Triton knows no unpacking)
        token = token // grid_shape[axis]
    return at


@triton.jit
def shifted(at, walked_tap, BLOCK: tl.constexpr, KERNEL: tl.constexpr):
    """Where a tap along the axes of one position a token leads."""
    place = ()
    for axis in tl.static_range(len(BLOCK) - 1, -1, -1):
        if BLOCK[axis] == 1:
            place = (at[axis] + walked_tap % KERNEL[axis] - KERNEL[axis] // 2,) + place  # noqa: RUF005 (Triton knows no unpacking)
            walked_tap = walked_tap // KERNEL[axis]
        else:
            place = (at[axis],) + place  # noqa: RUF005 (Triton knows no unpacking)
    return place


@triton.jit
def neighbour_slots(slot_ptr, at, grid_shape, NEIGHBOURS: tl.constexpr):
    """Slots of the neighbours of the place `at`, -1 for one that is not there; all are asked for at once."""
    slots = ()
    for n in tl.static_range(length(NEIGHBOURS)):
        token = at[0] * 0
        inside = token == 0
        for axis in tl.static_range(len(grid_shape)):
            place = at[axis] + entry(NEIGHBOURS, n, 0, axis)
            inside = inside & (place >= 0) & (place < grid_shape[axis])
            token = token * grid_shape[axis] + place
        slots += (tl.load(slot_ptr + token, mask=inside, other=-1),)
    return slots
