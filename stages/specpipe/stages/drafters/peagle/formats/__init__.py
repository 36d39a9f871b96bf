"""The formats of P-EAGLE artifacts on disk."""
