"""The IR: axes, rules, text form, verifier."""
