"""`horovod.runner.common`: a package, for `util`."""
