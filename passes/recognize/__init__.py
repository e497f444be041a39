"""Recognizers: each file finds one thing a language model is made of in imported Relax."""
