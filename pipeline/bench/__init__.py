"""Speed, measured: ratios between two ways of doing the same work in one run."""
