"""What artifacts of several architectures say and hold: config keys, tensors, their checks."""
