"""Studies of many runs: `trainer ablate`, `trainer sweep`, `trainer loop`."""
