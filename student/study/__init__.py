"""Studies: many runs that answer one question, in a folder that can be resumed."""
