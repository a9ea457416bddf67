"""What is known before anything runs: cases, configuration, records and their reader, the instrument's version."""
