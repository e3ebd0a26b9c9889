"""`python -m pipeline` is `forgeline`, for torchrun: `torchrun --nproc-per-node N -m pipeline stage train`."""

from pipeline.cli import main

if __name__ == "__main__":
    main()
