"""`horovod.runner.common.util`: a package, for `env`."""
