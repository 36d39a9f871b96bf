"""Makes `tests.drafter.reference` and `tests.drafter.toys` importable under importlib mode."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
