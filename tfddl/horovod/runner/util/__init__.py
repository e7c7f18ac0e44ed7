"""`horovod.runner.util`: a package, for `threads`."""
