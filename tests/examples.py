"""How many random inputs a test tries: a quarter in the fast tests, all with `--hypothesis-profile thorough`.

They differ from run to run, so that the fast tests try all that the thorough ones do in a few runs.
"""

from hypothesis import settings

settings.register_profile("thorough", max_examples=100, deadline=None)
settings.register_profile("quick", settings.get_profile("thorough"), max_examples=25)
settings.load_profile("quick")


def examples(number: int) -> int:
    """`number` if the tests are to be thorough."""
    return max(number * settings.default.max_examples // 100, 3)
