"""The settings of each command: types, choices, defaults, help."""
