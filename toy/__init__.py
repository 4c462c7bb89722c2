"""The miniature: its drawn world, how its networks were made, their weights."""
