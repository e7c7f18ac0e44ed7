"""The random state of a model: of its dropout and other layers that draw numbers."""

import functools
from typing import Any

import keras
import tensorflow as tf

from tfddl._src.collectives import broadcast_variables
from tfddl._src.runtime import current


def seed_states(model: Any) -> list[Any]:
    """The variables in which a model's seed generators keep (seed, counter)."""
    return [v for v in model.variables if v.name == _state_name()]


def derive_seeds_per_rank(model: Any) -> None:
    """Derives every rank's seeds from rank 0's: dropout differs, and is the same in each run.

    All ranks must call it together.
    """
    seeds = seed_states(model)
    broadcast_variables(seeds)
    for seed in seeds:
        seed.assign(derived_seed(tf.convert_to_tensor(seed), current().cluster.rank))


def derived_seed(state: tf.Tensor, rank: int) -> tf.Tensor:
    """A rank's state of a seed generator, (seed, counter), derived from rank 0's."""
    # Each rank adds its multiple of 2**32 / golden ratio: distinct for all ranks, since the factor
    # is odd, and far apart for neighbours.
    mixed = (tf.cast(state[0], tf.int64) + rank * 0x9E3779B1) % 2**32
    return tf.stack([tf.cast(mixed, state.dtype), state[1]])


@functools.cache
def _state_name() -> str:
    # SeedGenerator.__init__ (keras/src/random/seed_generator.py) gives all of them the same, which
    # is nowhere promised: so one is asked. With a name of its own, it takes no number from others.
    return str(keras.random.SeedGenerator(0, name="tfddl").state.name)
