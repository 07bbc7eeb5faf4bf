"""The HTTP side, one uvloop process: auth, tokenize, submit, encode the rows that come back."""
