"""How many rows of each category, which ones, and in what order."""
