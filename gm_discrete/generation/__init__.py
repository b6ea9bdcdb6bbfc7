"""From a request to samples."""
