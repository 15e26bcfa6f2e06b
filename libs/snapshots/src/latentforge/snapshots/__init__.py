"""Hot loading of checkpoints: which is served, what it had to pass, what is quarantined, leased and pinned."""
