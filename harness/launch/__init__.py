"""`python -m harness.launch`: compose, check, plan, submit, and follow if asked."""
