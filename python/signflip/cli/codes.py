"""The exit codes, for scripts."""

OK = 0
NOTHING_FOUND = 1
FAILED = 2
BUG = 70
INTERRUPTED = 130
# What a shell reports for a process that SIGPIPE ended, as `signflip ... | head` should look.
PIPE_CLOSED = 141
