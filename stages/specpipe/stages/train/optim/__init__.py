"""What is minimised, and how: objective, optimiser, learning rate."""
