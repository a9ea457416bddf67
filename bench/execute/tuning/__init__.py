"""`bench tune`: which tile is faster than the rule's, for every kernel of the library."""
