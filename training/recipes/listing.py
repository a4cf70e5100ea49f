"""What recipes there are, as a table."""

import yaml

from .loading import KINDS, every_recipe


def list_recipes() -> list[dict[str, str]]:
    """`name`, `command` and `description` of every shipped recipe, those to try out behind the others."""
    found = []
    for name, (kind, text) in every_recipe().items():
        description = yaml.safe_load(text).get("description", "")
        if not description and name.endswith("-tiny"):
            description = f"{name.removesuffix('-tiny')} in a nutshell: a few steps on synthetic speech"
        found.append({"name": name, "command": KINDS[kind], "description": description})
    return sorted(found, key=lambda entry: (entry["name"].endswith("-tiny"), entry["command"], entry["name"]))


def describe_recipes(recipes: list[dict[str, str]]) -> str:
    """A line for each."""
    width = max(len(f"{entry['command']} {entry['name']}") for entry in recipes)
    lines = [f"{entry['command'] + ' ' + entry['name']:{width}}  {entry['description']}" for entry in recipes]
    return "\n".join([*lines, "lighthubert recipes NAME prints one; lighthubert COMMAND NAME [key=value …] runs it"])
