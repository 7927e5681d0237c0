"""How anything is learned: the worker loop, its contracts, checkpoints and reporters."""
