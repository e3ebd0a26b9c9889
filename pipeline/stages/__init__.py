"""One file per stage of dvc.yaml: a pure function, reading and writing at its rim.

Each module has `Params` (its section of params.yaml), `read_params(document)` and `run(document)`; the two stages that
judge both the real and the made have `run(document, which)`.
"""
