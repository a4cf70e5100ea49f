"""`python -m lighthubert_hf`: the command `lighthubert`, for launchers of several processes."""

from .cli import main

if __name__ == "__main__":
    main()
