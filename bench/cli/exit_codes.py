"""Exit statuses of the command line.

Status 1 is only a verb's own finding: a confirmed regression in the gate, a failed point of ours in a sweep, or a
served model with different answers. bench.model.verdict.Exit has the gate's statuses, which agree with these.
"""

FOUND = 1
FAILED = 2  # wrong usage, bad files, any unexpected error
CANNOT_JUDGE = 3
CAPTURE_FAILED = 3  # of `profile`: no permission, nothing captured, the program or the tool ended badly
INTERRUPTED = 130
