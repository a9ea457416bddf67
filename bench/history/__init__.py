"""Series across commits: what a profile took at each of them, where that changed, and which commit did it."""
