"""How tensors travel between the workers: one interface, `ProcessGroup`, and its implementations.

Usage:
    group = make_tensorflow_group(rank, size, device, Collective.RING)
    [total] = group.all_reduce([tensor], ReduceOp.SUM)
"""
