"""Datatypes, sizes, numpy views."""
