"""The verifier's head (final norm and lm_head), loaded without the target."""
