"""DSpark: DFlash's blocks, then a bias on each draft by the token before it."""
