"""Sources: files, Hugging Face data sets, and the documentation that every Python carries."""
