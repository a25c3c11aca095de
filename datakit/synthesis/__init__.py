"""Questions that personas ask about documents, written by a language model."""
