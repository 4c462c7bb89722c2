"""What keeps a run alive: how it starts, the check before step 0, checkpoints, what it tells."""
