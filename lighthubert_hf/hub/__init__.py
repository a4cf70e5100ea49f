"""Model folders, their cards, and the way to the Hub."""
