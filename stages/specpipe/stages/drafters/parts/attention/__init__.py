"""Attention of the unrolled drafter: the chain over its kernels, chosen by device."""
