"""What is done with a finished model: `trainer merge`, `rotate`, `export`, `report`."""
