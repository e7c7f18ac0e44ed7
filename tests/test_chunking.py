"""How what travels is cut into pieces, or joined."""

from collections.abc import Sequence

import pytest
import tensorflow as tf

from tests.group import Groups
from tfddl._src.comm.chunking import Span, chunk_bytes, cut
from tfddl._src.comm.process_group import with_small_concatenated

CASES = "tests.cases.batch_slices"
EVERY_DTYPE = pytest.param(["float32", "float64", "int32"], marks=pytest.mark.long)


@pytest.mark.parametrize(
    ("lengths", "pieces"),
    [
        ([], []),
        ([0, 0], []),
        ([5], [[(0, 0, 5)]]),
        ([5, 0, 6], [[(0, 0, 5), (2, 0, 6)]]),  # Short neighbours go together.
        ([30, 20, 3, 9], [[(0, 0, 30)], [(1, 0, 20), (2, 0, 3), (3, 0, 9)]]),
        ([33], [[(0, 0, 32)], [(0, 32, 33)]]),  # Slices begin at multiples of 64 bytes.
        ([2, 70, 2], [[(0, 0, 2)], [(1, 0, 32)], [(1, 32, 64)], [(1, 64, 70)], [(2, 0, 2)]]),
    ],
)
def test_long_ones_are_cut_and_short_ones_joined(
    lengths: list[int], pieces: list[list[tuple[int, int, int]]]
) -> None:
    assert cut(lengths, most=32, itemsize=4) == [[Span(*span) for span in p] for p in pieces]


def test_every_element_travels_once_in_order() -> None:
    for most in (1, 8, 20, 64):
        limit = max(most // 8, 1) * 8
        for a in range(0, 70, 7):
            for b in range(70):
                lengths = [a, b, 3, 0, b]
                pieces = cut(lengths, most=most, itemsize=8)
                seen = [(s.tensor, i) for p in pieces for s in p for i in range(s.start, s.stop)]
                assert seen == [(t, i) for t, n in enumerate(lengths) for i in range(n)]
                sizes = [sum(span.stop - span.start for span in piece) for piece in pieces]
                assert all(0 < size <= limit for size in sizes)
                assert all(span.start % 8 == 0 for piece in pieces for span in piece)


def test_pieces_of_a_whole() -> None:
    assert [chunk_bytes(n) for n in (1, 2, 16)] == [None, 2**23, 2**20]


@pytest.mark.parametrize(
    "dtypes", [pytest.param(["float32"], marks=pytest.mark.long), EVERY_DTYPE], ids=len
)
def test_what_is_cut_is_summed_up_as_if_it_were_not(groups: Groups, dtypes: list[str]) -> None:
    """In 8 pieces at once, the default, and in one; what adds up is compared bit for bit."""
    cut_up = groups(3, collective="ring")
    runs = [cut_up.run(f"{CASES}:sums", dtypes=dtypes, timeout_s=120.0) for _ in range(2)]
    assert max(max(off) for off, _ in runs[0]) < 1e-4  # Of numbers about 100, three of them.
    assert len({bits for run in runs for _, bits in run}) == 1


@pytest.mark.long
def test_what_is_not_a_sum_is_cut_as_well(groups: Groups) -> None:
    assert groups(3, collective="ring").run(f"{CASES}:others") == [[True] * 4] * 3


def test_as_many_as_there_are_pieces_travel_at_once(groups: Groups) -> None:
    cut_up = groups(3, collective="ring")
    assert cut_up.run(f"{CASES}:subsets") == [[6.0, 30.0, 3.0], [6.0, 30.0, 3.0], [6.0, 3.0]]
    assert cut_up.run(f"{CASES}:at_once") == [{"launched": 8, "open": 0}] * 3


def test_small_neighbours_travel_as_one() -> None:
    shapes = [(3,), (2, 2), (9, 9), (), (0,), (1, 5), (9, 10)]
    pack = [tf.fill(shape, float(i)) for i, shape in enumerate(shapes)]
    travelled: list[tuple[tuple[int, ...], bool]] = []

    def travel(tensors: Sequence[tf.Tensor], are_joined: Sequence[bool]) -> list[tf.Tensor]:
        shapes = [tuple(tensor.shape) for tensor in tensors]
        travelled.extend(zip(shapes, are_joined, strict=True))
        return [10 * tensor for tensor in tensors]

    arrived = with_small_concatenated(pack, travel, max_bytes=80)
    assert travelled == [((7,), True), ((9, 9), False), ((6,), True), ((9, 10), False)]
    for given, got in zip(pack, arrived, strict=True):
        assert got.shape == given.shape
        assert (got.numpy() == 10 * given.numpy()).all()


def test_sizes_known_only_when_the_graph_runs(groups: Groups) -> None:
    """Beside small and large ones that are known before."""
    assert groups(3).run(f"{CASES}:known_and_unknown") == [[0.0] * 6] * 3
