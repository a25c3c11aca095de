"""Vectors of texts: a sentence encoder, the step that encodes each text once, and the readers of what it wrote."""
