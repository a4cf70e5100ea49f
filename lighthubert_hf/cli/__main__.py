"""`python -m lighthubert_hf.cli`, as launchers of several processes call it."""

from . import main

if __name__ == "__main__":
    main()
