"""What a user runs before a long run: everything that could stop it later, looked at now. One file per step."""
