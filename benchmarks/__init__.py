"""One script for each claim of speed: ours and its peers in one run."""
