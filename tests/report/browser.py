"""The Chromium that this machine has."""

import shutil

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def browser_path() -> str | None:
    """None where none is installed."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)
