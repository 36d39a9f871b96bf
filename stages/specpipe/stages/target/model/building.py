"""Models are built one at a time: transformers changes the whole process while it builds one."""

from threading import RLock

MODEL_BUILDING = RLock()
"""Held while transformers builds or loads a model. Until it is done, it has weight tying switched
off and torch's default dtype changed for every thread; of two at once, the second would take that
for the normal state, and leave tying off for good."""
