"""Reading documents: which files hold them, and the text of each, or the reason why it is not read."""
