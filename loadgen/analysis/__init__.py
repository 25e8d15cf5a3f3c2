"""What the files of runs say, with how much certainty."""
