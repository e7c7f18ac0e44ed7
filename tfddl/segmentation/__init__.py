"""The application: semantic segmentation with a U-Net, on one worker or many.

Usage, in a shell::

    tfddlrun -np 2 tfddl-train                        # on a synthetic data set
    tfddlrun -np 2 tfddl-train --data_dir=DIR         # on your own; the same command resumes
    tfddl-prepare --input_dir=DIR --output_dir=DIR2   # decode once, for a faster --data_dir
    tfddlrun -np 2 tfddl-predict --model=best.keras --input_dir=DIR3 --output_dir=MASKS

The commands are `train`, `prepare` and `predict`: flags only (`command`, `job_flags`), which make a
configuration (`config`, `presets`). The work is done in `training`, `preprocessing` and
`inference`. Data: `layout` finds what lies in a directory, `examples` reads it (with `image_io`),
`augment` transforms it, `synthetic` makes some. `dice` has losses and metric; `visualization` draws
predictions.
"""
