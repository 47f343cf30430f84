"""The command line: one command for each public function, with its words and its defaults.

Exit codes: 0, it worked; 1, it worked and found none of what it was asked to find (no feature that one-sided, nothing
reversed by the scan, a search that did not reach the other side); 2, bad usage or input, or work that could not be
done; 70, a bug in signflip; 130, interrupted.
"""

from signflip.cli.main import main

__all__ = ["main"]
