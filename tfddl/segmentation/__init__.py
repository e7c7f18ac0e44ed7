"""The application: a U-Net that learns masks, trained by several workers at once.

Usage, in a shell::

    tfddlrun -np 2 tfddl-train                        # on images that it makes
    tfddlrun -np 2 tfddl-train --data_dir=DIR         # on images/X.png and masks/X_mask.png
    tfddl-train --help

`folder` reads images and masks, `synthetic` makes some (`scenery` and `car` draw them), `dice` has
the loss and the metrics, `picture` shows what was learnt, `config` holds the flags, `train` is the
command.
"""
