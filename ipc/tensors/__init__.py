"""Tensors: datatypes, sizes, numpy views."""
