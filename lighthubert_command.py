"""The command `lighthubert`.

It lies outside the package so that it is imported first: where it is, the package does not register the Auto classes
on import, which takes torch and transformers, seconds that `lighthubert --help` should not need.
"""


def main() -> None:
    """Run the command line."""
    from lighthubert_hf.cli import main

    main()
