"""Estimators of evaluation."""
