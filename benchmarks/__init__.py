"""Speed and memory, run by hand: ratios against a plain baseline, measured in one run."""
