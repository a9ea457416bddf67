"""The instrument: sweeps, verified points, records."""
