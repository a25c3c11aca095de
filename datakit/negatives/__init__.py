"""Hard negatives: mined from the documents of the category and split, and screened for likely positives."""
