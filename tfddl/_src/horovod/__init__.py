"""The implementation of `tfddl.horovod`, which only exports Horovod's names.

Signatures, defaults and semantics mirror Horovod 0.28.1 (https://github.com/horovod/horovod, tag
v0.28.1); modules are named after its files where there is one: common/basics.py,
tensorflow/mpi_ops.py, runner/__init__.py.
"""
