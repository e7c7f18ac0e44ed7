"""What the parts of the launcher have in common."""
