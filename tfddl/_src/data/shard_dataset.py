"""`shard_dataset`: each worker's own dataset."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfddl._src.cpu import num_loader_threads
from tfddl._src.data.dataset_source import DatasetSource
from tfddl._src.data.examples import Examples
from tfddl._src.data.shard import Shard, epoch_state
from tfddl._src.data.sources import IndexedSource, Source, gives_examples
from tfddl._src.data.transforms import Transforms
from tfddl._src.runtime import current
from tfddl._src.sharding import BlockPlan, GlobalPlan, Order, Plan
from tfddl._src.virtual_workers import check_virtual_workers, own_workers
from tfddl.errors import DataError, UnsupportedError


def shard_dataset(  # noqa: PLR0913 - the public signature: (x, y, sample_weight) as in Keras' fit
    x: Any,
    y: Any = None,
    sample_weight: Any = None,
    *,
    batch_size: int,
    seed: int | None = None,
    order: Order | str = Order.GLOBAL,
    epoch: int = 0,
    load: Callable[..., Any] | None = None,
    augment: Callable[..., Any] | None = None,
    virtual_workers: int | None = None,
) -> tf.data.Dataset:
    """This worker's shard of a data set, in batches.

    Every rank passes the whole data, which every worker must be able to read, and gets its own
    batches: each example of an epoch goes to exactly one rank, all ranks run the same number of
    steps, and no batch is empty, whatever the number of examples and workers. TensorFlow's
    auto-sharding is off. Nothing is sent between workers.

    Within `fit` each epoch has an order of its own. Leave ``repeat()`` out: `fit` iterates over the
    dataset once per epoch by itself. In a loop written by hand, make the dataset anew in each
    epoch, with ``epoch=…``: a dataset that is iterated again repeats itself.

    What a worker reads, and what it keeps in memory besides what it was given:

    * **Arrays in memory**, and what can be made one (tensors, lists of numbers): every worker
      holds all of what it is given. A few batches are kept: up to two are ready ahead;
      small ones are made up to 16 at once, 1 MiB in all.
    * **Memory-mapped ``.npy``** (``np.load(path, mmap_mode="r")``, and parts of one, such as
      ``x[100:]``): only the rows of the worker's own examples are read, from the file into the
      batch, so that they don't count as the worker's memory. A few batches are kept, in either
      order. Where rows aren't contiguous in the file (``x[:, ::2]``, Fortran order), or with
      ``mmap_mode="c"``, the map itself is read, and its pages count while the system keeps them.
    * **Columns of Parquet files** (`tfddl.open_parquet`): only the row groups that have rows of the
      worker are decoded, once, into a file without a name; rows are read from there as from a
      memory map. A few batches are kept.
    * **Anything with a length that can be indexed, such as a list of files, with ``load``**: every
      worker holds the list; only its own examples are loaded, by a few threads, each at most
      two ahead. A few batches and these examples are kept.
    * **Records of TFRecord files** (`tfddl.open_tfrecords`): strings; a worker reads its own only,
      and no others' bytes. ``map`` parses a batch of them at once, in the graph; with ``load`` they
      are examples like files.
    * **What returns examples by their number**, such as `grain.MapDataset` or a class with
      ``__len__`` and ``__getitem__``: ``x``, ``(x, y)`` or ``(x, y, sample_weight)`` each. As with
      ``load``.
    * **A `tf.data.Dataset` of known length**, whose elements are single examples: with "block",
      what comes before the worker's part is made and dropped, its own part is used, the rest isn't
      read. With "global", every worker goes through all of it, and drops at once what isn't its
      own. A few batches are kept, and what the dataset itself keeps (cache, shuffle, prefetch).
      It must have the same elements in the same order on every rank, each time it is iterated.

    In any of these, an order takes 8 bytes per example (with "block", per example of the worker's
    part), and those of up to four epochs are kept.

    With a batch size of 1 and a number of examples that the number of workers doesn't divide, some
    steps have fewer examples than workers. The ranks that are left over then get a *padding
    example*: a real one, with the sample weight -0.0, which `fit` ignores altogether. Such a
    dataset always has sample weights, so that `fit` takes no ``class_weight`` with it.

    One example is read and made at once, for its shapes and dtypes; all others must have the same.
    An error in an example that is read later is raised where the dataset is iterated, with the rank
    and the example in its text.

    Args:
        x: An array, a memory-mapped ``.npy``, a column of Parquet files, TFRecords, a tensor, or a
            tuple or dictionary of these; all have the same first dimension n. With `load`, also
            anything else that has a length and can be indexed by number. Alone: also what returns
            examples ``x``, ``(x, y)`` or ``(x, y, sample_weight)`` by their number, or a dataset of
            such examples.
        y: The same, or None. None where x is a dataset.
        sample_weight: The same, or None. None where x is a dataset.
        batch_size: Examples per rank and step, as in Horovod, at least 1. One worker with a batch
            size of ``size * batch_size`` has the same global batches.
        seed: Shuffles; the same on every rank. None keeps the order of the data; the only choice
            for a dataset.
        order: "global" (an epoch is one permutation of all examples) or "block" (each rank stays
            within its contiguous shard, and reads nothing else).
        epoch: Which epoch's order, outside of `fit`.
        load: Called for each example as ``load(x)``, ``load(x, y)`` or
            ``load(x, y, sample_weight)``, with its elements of what was given; returns the example
            as Keras takes it: ``x``, ``(x, y)`` or ``(x, y, sample_weight)``, in arrays, or tuples
            and dictionaries of them, of the same shapes and dtypes for all examples. Called by
            several threads at the same time.
        augment: Called for each example as ``augment(rng, x)``, ``augment(rng, x, y)`` or
            ``augment(rng, x, y, sample_weight)``, after `load`, with a `numpy.random.Generator`
            that depends on seed (None: 0), epoch and the example's number only: so the example is
            the same whatever the number of workers. Returns the example in the same arrangement.
            Called by several threads at the same time.
        virtual_workers: Plans for so many virtual workers, at least as many as there are workers,
            instead of the workers themselves; ``batch_size`` is then that of a virtual worker. In
            each step the dataset has one batch for each virtual worker of this process, one after
            the other; `fit` takes them together. See `DistributedOptimizer`.

    Returns:
        A dataset of known length (steps, times the virtual workers of this process where there are
        any) with elements ``x``, ``(x, y)`` or ``(x, y, sample_weight)`` as
        given, batched: first dimensions at least 1 and at most ``batch_size``.

    Raises:
        NotInitializedError: `tfddl.init()` has not been called.
        DataError: x is None; no examples; lengths that differ; a dataset of unknown length or
            whose order changes; an unknown order; a mapped file that was cut short or is gone; a
            first example that can't be read or made.
        ShardingError: Fewer examples than workers, or a number out of range.
        UnsupportedError: A seed for a dataset; padding examples are needed, but there is no ``y``;
            fewer virtual workers than workers.
    """
    runtime = current()
    cluster = runtime.cluster
    ranks = [cluster.rank]
    if virtual_workers is not None:
        check_virtual_workers(virtual_workers, cluster.size)
        ranks = list(own_workers(virtual_workers, cluster.rank, cluster.size))
    if load is None and y is None and gives_examples(x):
        load = _unchanged
    source = _source((x, y, sample_weight), seed, loaded=load is not None)
    kind = {Order.GLOBAL: GlobalPlan, Order.BLOCK: BlockPlan}[_order(order)]
    plan: Plan = kind(
        num_examples=source.num_examples,
        size=virtual_workers or cluster.size,
        batch_size=batch_size,
        seed=seed,
    )
    # The rank's own first example tells shapes and dtypes: with load=…, files of other ranks need
    # not be on this host.
    examples = Examples(
        source,
        Transforms(load=load, augment=augment, seed=seed),
        rank=cluster.rank,
        num_threads=num_loader_threads(runtime.num_cores),
        first=plan.batch(epoch=epoch, step=0, rank=ranks[0]).indices[:1],
    )
    shard = Shard(epoch_state(), examples, plan, ranks=ranks, epoch=epoch)
    shard.virtual_workers = virtual_workers
    return shard.dataset()


def _unchanged(example: Any) -> Any:
    return example


def _source(parts: tuple[Any, Any, Any], seed: int | None, *, loaded: bool) -> Source:
    x, y, sample_weight = parts
    if x is None:
        raise DataError("x is None; expected at least the inputs. HINT: pass x to shard_dataset.")
    if not isinstance(x, tf.data.Dataset):
        if y is None and sample_weight is not None:
            raise DataError(
                "sample_weight is given without y, so there is no loss to weight. HINT: pass y too."
            )
        return IndexedSource([part for part in parts if part is not None], loaded=loaded)
    if y is not None or sample_weight is not None:
        raise DataError(
            "x is a tf.data.Dataset, but y or sample_weight is given too. HINT: let the elements "
            "of the dataset be (x, y) or (x, y, sample_weight): tf.data.Dataset.zip((x, y))."
        )
    if seed is not None:
        raise UnsupportedError(
            f"seed is {seed} and x a tf.data.Dataset, which can only be read from its beginning, "
            "and not in a shuffled order. HINT: pass arrays, or a list of files with load=…; or "
            "shuffle the dataset itself, the same way each time: "
            "dataset.shuffle(n, seed=…, reshuffle_each_iteration=False)."
        )
    return DatasetSource(x)


def _order(order: str) -> Order:
    try:
        return Order(order)
    except ValueError:
        raise DataError(f"order is {order!r}; expected {' or '.join(Order)}.") from None
