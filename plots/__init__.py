"""Pictures of results files: one file for each figure, one style. Reads results and never measures."""
