"""The command that installs an extra of pyproject.toml: PyPI's `specpipe` is another project's."""


def install_hint(*extras: str) -> str:
    """The command for the extra, or for one of several."""
    commands = " or ".join(f"pip install '.[{extra}]'" for extra in extras)
    return f"{commands}, in the checkout of specpipe"
