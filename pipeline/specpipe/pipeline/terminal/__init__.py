"""What a person types and sees: options, settings files, tables, progress."""
