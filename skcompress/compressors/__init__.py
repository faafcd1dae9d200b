"""Estimators that make a model smaller."""
