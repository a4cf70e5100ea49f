"""Features of a whole data set: read, computed and kept."""
