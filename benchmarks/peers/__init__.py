"""Training in other frameworks, and one meter for all of them; see __main__.py."""
