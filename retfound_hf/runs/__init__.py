"""What every command shares: one-line errors, arguments, whole-or-nothing outputs and the record of a run."""
