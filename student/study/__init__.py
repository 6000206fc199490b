"""Studies: many runs of one question, in a folder that can be killed and resumed."""
