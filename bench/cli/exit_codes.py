"""Exit statuses of the command line.

1 is a verb's own finding and nothing else: a confirmed regression of the gate, a failed point of ours in a sweep, a
served model that answers otherwise. bench.model.verdict.Exit has the gate's, which agree with these.
"""

FOUND = 1
FAILED = 2  # wrong usage, bad files, anything that was not foreseen
CANNOT_JUDGE = 3
CAPTURE_FAILED = 3  # of `profile`: no permission, nothing captured, the program or the tool ended badly
INTERRUPTED = 130
