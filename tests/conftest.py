"""Makes `tests.<folder>.<module>` importable under importlib mode: tests share references."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
