"""What was tried and is not part of the trainer: nothing of the trainer imports it, and no setting turns it on.

`geometry`: heads onto the hyperbolic space and the sphere. `benchmarks/hierarchies.py` tells what they are worth.
"""
