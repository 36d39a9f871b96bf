"""`python -m specpipe` is `specpipe`."""

from specpipe.pipeline.cli import main

if __name__ == "__main__":
    main()
