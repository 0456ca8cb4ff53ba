"""Timing streamlstm and its peers in one run; bench/compare.py is the door."""
