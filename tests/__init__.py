"""The tests: folders mirror the packages they test, and what several of them share is in `tests.support`."""
