"""A retrieval set of a person's own domain: drawn from what a build holds out, labelled in a local web page, read back."""
