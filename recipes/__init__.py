"""Complete training runs, one script for each kind of data."""
