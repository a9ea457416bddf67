"""What all ops share between contract and kernel: checks, tiles, and repeated launches without repeated checks."""
