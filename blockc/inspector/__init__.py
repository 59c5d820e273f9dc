"""The inspector: every decision about a program, what it cost, and why others were not taken."""
