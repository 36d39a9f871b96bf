"""Faults of vLLM on a CPU, repaired in the engines that we start."""
