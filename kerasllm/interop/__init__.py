"""Weights and configs in and out."""
