"""Rows that an evaluation set holds must not be trained on. Texts are compared word by word (index.py) and by meaning.

Not in `dedup/`: duplicates are chosen among rows, and one of them stays; here texts from outside decide, and none stays.
"""
