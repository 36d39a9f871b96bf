"""The page's sections."""
