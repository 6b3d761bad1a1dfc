"""`python -m ffmerge`: the toolkit for models of anybody."""
