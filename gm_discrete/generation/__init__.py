"""`generate`: from a request to samples."""
