"""The tree over virtual workers: one order of sums, whatever the number of processes."""

import pytest

from tfddl._src.virtual_workers import Node, TreeSum, nodes_of, own_workers


def _join(first: str, second: str) -> str:
    return f"({first} {second})"


def _by_processes(virtual_workers: int, size: int) -> str:
    total: TreeSum[str] = TreeSum(_join)
    for rank in range(size):
        own: TreeSum[str] = TreeSum(_join)
        for worker in own_workers(virtual_workers, rank, size):
            own.push(Node(worker, 1), str(worker))
        for node, value in own.nodes:
            total.push(node, value)
    return total.total()


@pytest.mark.parametrize(
    ("virtual_workers", "order"),
    [
        (1, "0"),
        (2, "(0 1)"),
        (3, "((0 1) 2)"),
        (5, "(((0 1) (2 3)) 4)"),
        (7, "(((0 1) (2 3)) ((4 5) 6))"),
        (8, "(((0 1) (2 3)) ((4 5) (6 7)))"),
    ],
)
def test_the_order_is_that_of_a_tree(virtual_workers: int, order: str) -> None:
    assert _by_processes(virtual_workers, 1) == order


def test_no_number_of_processes_changes_the_order() -> None:
    for virtual_workers in range(1, 34):
        expected = _by_processes(virtual_workers, 1)
        for size in range(1, virtual_workers + 1):
            assert _by_processes(virtual_workers, size) == expected, (virtual_workers, size)


def test_each_level_of_the_tree_has_one_sum_at_most() -> None:
    for virtual_workers in (8, 13, 64):
        for size in (1, 2, 3, 5):
            for rank in range(size):
                nodes = nodes_of(own_workers(virtual_workers, rank, size))
                assert len(nodes) <= 2 * virtual_workers.bit_length()
        sums: TreeSum[int] = TreeSum(lambda a, b: a + b)
        for worker in range(virtual_workers):
            sums.push(Node(worker, 1), 1)
            assert len(sums.nodes) <= virtual_workers.bit_length()
        assert sums.total() == virtual_workers


def test_blocks_that_are_aligned_are_one_node() -> None:
    assert [nodes_of(own_workers(8, rank, 4)) for rank in range(4)] == [
        [Node(0, 2)],
        [Node(2, 2)],
        [Node(4, 2)],
        [Node(6, 2)],
    ]
    assert nodes_of(own_workers(8, 1, 3)) == [Node(3, 1), Node(4, 2)]
