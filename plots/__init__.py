"""Pictures of results files: one file a figure, one style. Reads results, never measures."""
