"""Estimators that set numbers of a model's weights to zero."""
