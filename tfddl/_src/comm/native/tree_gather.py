"""What all workers of an operation have, put together along the tree, for each of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tfddl._src.comm.native.mesh import Mesh
from tfddl._src.comm.native.messages import Group, Message, OpSignature, Tag
from tfddl._src.comm.native.tree import Tree

NUM_STEPS = 2
"""How many steps of an operation it takes."""


def tree_gather(  # noqa: PLR0913 - what, of whom, and in which operation
    mesh: Mesh,
    ranks: Sequence[int],
    tag: Tag,
    own: bytes,
    merge: Callable[[bytes, bytes], bytes],
    *,
    signature: OpSignature,
    group: Group,
) -> bytes:
    """Puts together what workers have. All of them call it together.

    Args:
        mesh: connects them.
        ranks: who, as the mesh numbers them, ascending, this worker among them.
        tag: of the first step.
        own: what this worker has; at most `MAX_PAYLOAD_BYTES`, as is what `merge` returns.
        merge: puts together what some have, and what others have.
        signature: of the operation.
        group: whom that is of.
    """
    place = Tree.of(ranks.index(mesh.rank), len(ranks))
    children = [ranks[index] for index in place.children]
    merged = own
    if children:
        received = mesh.collect(tag, children, signature, group=group)
        for child in children:
            merged = merge(merged, received[child].payload)
    down = tag._replace(step=tag.step + 1)
    if place.parent is not None:
        parent = ranks[place.parent]
        mesh.send([parent], tag, Message(0, 0, merged))
        merged = mesh.collect(down, [parent], signature, group=group)[parent].payload
    mesh.send(children, down, Message(0, 0, merged))
    return merged
