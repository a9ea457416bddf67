"""What is known before anything runs: cases, configuration, records and their one reader, the instrument's version."""
