"""What every op shares between its contract and its kernel: checks, tiles, and launching once what was checked once."""
