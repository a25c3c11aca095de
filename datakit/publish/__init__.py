"""Publishing: the data set's files, its manifest, its card and its report."""
