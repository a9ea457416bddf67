"""`bench tune`: finds tiles that are faster than the rule's, for every kernel of the library."""
