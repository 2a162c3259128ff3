"""The commands of the training module. Each module has `HELP`, `add_arguments(parser)` and `run(args)`.

`finelap --help` imports them all, so slow imports belong inside `run`.
"""

NAMES = ("train", "simulate", "ablate", "evaluate", "calibrate", "cluster")
