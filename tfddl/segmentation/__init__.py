"""The application: a U-Net that learns masks, trained by several workers at once.

Usage, in a shell::

    tfddlrun -np 2 tfddl-train                        # on images that it makes
    tfddlrun -np 2 tfddl-train --data_dir=DIR         # on yours; the same again goes on
    tfddl-prepare --input_dir=DIR --output_dir=DIR2   # decode them once, for a faster --data_dir
    tfddlrun -np 2 tfddl-predict --model=best.keras --input_dir=DIR3 --output_dir=MASKS

`layout` finds what lies in a folder, `examples` reads it (with `pixels`), `augment` changes it,
`synthetic` makes some (`scenery` and `car` draw it). `dice` has losses and metric, `picture`
shows what was learnt. `config` holds the flags of the commands and `presets` sets of them. The
commands `train`, `prepare` and `predict` are flags only; the work is done in `training`,
`preparing` and `predicting`.
"""
